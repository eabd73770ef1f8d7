package kms_test

import (
	"net/http"
	"net/url"
	"os"
	"testing"

	"go.uber.org/goleak"

	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	// The credential library clones the default transport for every request, which makes it
	// the one place where its fixed addresses can be led to fakes: the metadata service to
	// an HTTP proxy, and STS to a server with a certificate of our own.
	t := http.DefaultTransport.(*http.Transport)
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Host == "100.100.100.200" {
			return url.Parse(fakeIMDS.Load().(string))
		}
		return nil, nil
	}
	t.TLSClientConfig = fakeCA.client()

	goleak.VerifyTestMain(m,
		goleak.Cleanup(func(code int) { upstreamtest.StopEtcd(); os.Exit(code) }),
		// The server under test leaves janitors behind.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}
