// Package dotenv holds an application with a .env file; this test runs it.
package dotenv

import (
	"os"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

func TestDotenv(t *testing.T) {
	sh := example.Tool(t, "sh")
	a := example.Start(t)
	a.Ready(t)
	app := func() string {
		out, code := example.Output(t, a.Dir, nil, sh, "app.sh")
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		return out
	}
	if got, want := app(), "app\nit's $HOME and `id`\nsk_test_51\n"; got != want {
		t.Errorf("the application has %q, not %q", got, want)
	}
	const tricky = "a \"b\" 'c' \\d $e `f` #g = é\nsecond line"
	a.Put(t, "demo/stripe", tricky)
	example.Eventually(t, "the new value", func() bool { return strings.Contains(app(), "second line") })
	if got := app(); !strings.HasSuffix(got, "\n"+tricky+"\n") {
		t.Errorf("the application has %q", got)
	}
	fi, err := os.Stat(a.Path("var", "app", ".env"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", fi.Mode(), err)
	}
}
