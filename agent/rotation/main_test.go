package rotation_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { upstreamtest.StopEtcd(); os.Exit(code) }), goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }
