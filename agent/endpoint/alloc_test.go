//go:build !race

// The race detector allocates memory of its own.

package endpoint

import (
	"io"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"
)

// TestHitAllocatesNothing runs the whole handler, every guard on, with and without a trace and
// an audit line.
func TestHitAllocatesNothing(t *testing.T) {
	s, c := newHeld(t)
	var requests []*fasthttp.RequestCtx
	for _, target := range []string{"/v1/app/db", "/v1/app%2Fdb", "/v1/app/db:ACSCurrent", "/secretsmanager/get?secretId=app%2Fdb&versionStage=ACSCurrent",
		"/v1/secret/data/app/db", "/v1/secret/data/app%2Fdb?version=0", "/v1/secret/data/app/db?version=1", "/v1/kv/app/db", "/v1/auth/token/lookup-self",
		"/v1/sys/health?uninitcode=299", "/v1/sys/internal/ui/mounts/secret/app/db",
		"/v1/app/db?format=vault", "/v1/app/db?field=password", "/v1/app/db?format=aws&field=username"} {
		requests = append(requests, hitRequest(t, c, target), hitRequest(t, c, target, hitTrace))
		if strings.HasPrefix(target, "/v1/app") {
			requests = append(requests, hitRequest(t, c, target, "X-Aws-Parameters-Secrets-Token: "+strings.Repeat("0123456789abcdef", 4)))
		}
	}
	for _, target := range []string{"/v1/app/db", "/v1/arn:aws:secretsmanager:us-east-1:123456789012:secret:app/db-AbCdEf", "/secretsmanager/get?secretId=app%2Fdb&versionStage=AWSCURRENT&",
		"/systemsmanager/parameters/get?name=%2Fapp%2Fdb&withDecryption=true"} {
		requests = append(requests, hitRequest(t, c, target, "X-Aws-Parameters-Secrets-Token: "+strings.Repeat("0123456789abcdef", 4)))
	}
	for _, audit := range []*AuditLog{nil, NewAuditLog(io.Discard, 0)} {
		s.opts.Audit = audit
		turn := 0
		if n := testing.AllocsPerRun(5000, func() {
			ctx := requests[turn%len(requests)]
			turn++
			s.handle(ctx)
			if ctx.Response.StatusCode() != 200 || len(ctx.Response.Body()) == 0 {
				t.Fatalf("%s: %d %s", ctx.Request.Header.RequestURI(), ctx.Response.StatusCode(), ctx.Response.Body())
			}
			ctx.Response.Header.Reset()
			ctx.Response.ResetBody()
		}); n != 0 {
			t.Errorf("audited %v: %v allocations", audit != nil, n)
		}
	}
}
