package endpoint

import (
	"context"
	"net/http"
	"os"

	"github.com/valyala/fasthttp"
	"golang.org/x/sync/semaphore"

	"secretagent/upstream"
)

// The operator is whoever may stop the agent and read its files anyway: root and the user of the agent itself, on this
// host, over a unix socket and without a token. It sees the whole status, and may have the configuration reloaded,
// whatever callers there are. Values it gets as one of them only.

// operatorName is what log and audit call the operator. No caller can have it.
const operatorName = "(operator)"

func newOperator() *caller {
	return &caller{
		Caller:  Caller{Name: operatorName, Status: true},
		account: &account{name: operatorName, denials: newAuditLimiter(), batches: semaphore.NewWeighted(1)},
	}
}

// isOperator reports whether c is a connection of the operator. A process without a number here is of another
// container that shares the folder of the socket: its root is not ours, and its users are not either.
func isOperator(c *conn) bool {
	return c.peer.known && c.peer.PID != 0 && (c.peer.UID == 0 || int(c.peer.UID) == os.Geteuid())
}

// Operator answers what the operator may ask, for a server of another socket that nobody else can open; not ok for
// anything else. A reload takes as long as it takes; ctx can end it.
func (s *Server) Operator(ctx context.Context, method, path string) (status int, body []byte, ok bool) {
	switch {
	case method == http.MethodGet && path == "/status" && s.opts.Status != nil:
		all := Viewer{Caller: operatorName, All: true, May: func(upstream.SecretName) bool { return true }}
		return http.StatusOK, encode(s.opts.Status(all)), true
	case method == http.MethodPost && path == "/reload" && s.opts.Reload != nil:
		status, body = s.reloadNow(ctx)
		return status, body, true
	}
	return 0, nil, false
}

// reload has the configuration read again.
func (s *Server) reload(ctx *fasthttp.RequestCtx, c *conn) {
	if s.opts.Reload == nil {
		s.refuse(ctx, c, pathNotFound)
		return
	}
	var body []byte
	s.whileBusy(c, func(within context.Context) { c.status, body = s.reloadNow(within) })
	ctx.Response.SetStatusCode(c.status)
	setJSON(ctx, body)
}

// reloadAnswer is what POST /reload answers.
type reloadAnswer struct {
	Reloaded bool
	Error    string `json:",omitempty"` // why not: the agent goes on as it was
	Report   string `json:",omitempty"` // every problem of the file, as "secretagent check" prints them
}

func (s *Server) reloadNow(ctx context.Context) (status int, body []byte) {
	err := s.opts.Reload(ctx)
	if err == nil {
		return http.StatusOK, encode(reloadAnswer{Reloaded: true})
	}
	answer := reloadAnswer{Error: err.Error()}
	if problems, ok := err.(interface{ Report() string }); ok {
		answer.Report = problems.Report()
	}
	return http.StatusUnprocessableEntity, encode(answer)
}
