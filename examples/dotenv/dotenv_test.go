// Package dotenv holds an application with a .env file; this test runs it, and reads the files with
// every reader of the README that is here.
package dotenv

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

// names are the variables in the files, whose values the readers print, each on a line.
const names = "DB_PASSWORD DB_URL DB_USERNAME STRIPE_KEY"

var readers = map[string][]string{
	"sh":             {"sh", "app.sh"},
	"bash":           {"bash", "app.sh"},
	"python-dotenv":  {"python3", "-c", `from dotenv import dotenv_values; print(*dotenv_values("var/app/.env").values(), sep="\n")`},
	"django-environ": {"python3", "-c", `import environ, os; environ.Env.read_env("var/app/.env"); [print(os.environ[n]) for n in "` + names + `".split()]`},
	"node":           {"node", "-e", `console.log(Object.values(require("dotenv").parse(require("fs").readFileSync("var/app/.env"))).join("\n"))`},
	"ruby":           {"ruby", "-e", `require "dotenv"; puts Dotenv.parse("var/app/.env").values`},
	"systemd": {"python3", "-c", `import ctypes, glob
lib = glob.glob("/usr/lib/*/systemd/libsystemd-shared-*.so") or glob.glob("/usr/lib/systemd/libsystemd-shared-*.so")
if not lib: raise SystemExit("No module of systemd")
values = ctypes.POINTER(ctypes.c_char_p)()
assert ctypes.CDLL(lib[0]).load_env_file(None, b"var/app/.env", ctypes.byref(values)) >= 0
print(*[values[i].decode().partition("=")[2] for i in range(4)], sep="\n")`},
}

// missing is what interpreters say of a library that they do not have.
var missing = regexp.MustCompile(`No module|Cannot find module|cannot load such file`)

func TestDotenv(t *testing.T) {
	a := example.Start(t)
	a.Ready(t)
	check := func(values ...string) {
		want := strings.Join(values, "\n") + "\n"
		for name, argv := range readers {
			t.Run(name, func(t *testing.T) {
				got, code := example.Output(t, a.Dir, nil, append([]string{example.Tool(t, argv[0])}, argv[1:]...)...)
				if code != 0 && missing.MatchString(got) {
					t.Skip("the library is not here")
				}
				if got != want {
					t.Errorf("exit code %d: it reads\n%snot\n%s", code, got, want)
				}
			})
		}
		t.Run("kubectl", func(t *testing.T) {
			out, _ := example.Output(t, a.Dir, nil, example.Tool(t, "kubectl"), "create", "secret", "generic", "x", "--from-env-file=var/app/docker.env", "--dry-run=client", "-o", "json")
			var got struct{ Data map[string][]byte }
			example.Must(t, json.Unmarshal([]byte(out), &got))
			for i, name := range strings.Fields(names) {
				if string(got.Data[name]) != values[i] {
					t.Errorf("%s is %q, not %q", name, got.Data[name], values[i])
				}
			}
		})
	}
	const password, url = "$HOME \"b\" \\n `c` #d", "db://h:1/x?a=[b]&c={d}~"
	check(password, url, "it's app", "sk_test_51=")
	if t.Failed() {
		return
	}

	// What not every reader would have is not written: the file stays, the status says why.
	a.Put(t, "demo/stripe", "it's $5")
	example.Eventually(t, "a failure", func() bool {
		out, _ := example.Output(t, a.Dir, nil, a.Bin, "status", "--config", "agent.yaml", "--output", "json")
		return strings.Contains(out, "STRIPE_KEY, from secret demo/stripe")
	})
	example.Eventually(t, "the docker file", func() bool {
		return strings.HasSuffix(example.Read(t, a.Path("var", "app", "docker.env")), "\nSTRIPE_KEY=it's $5\n")
	})
	if env := example.Read(t, a.Path("var", "app", ".env")); !strings.HasSuffix(env, "\nSTRIPE_KEY=sk_test_51=\n") {
		t.Errorf("the file is\n%s", env)
	}
	a.Put(t, "demo/stripe", " ~/é:~/x; (y) ")
	example.Eventually(t, "the new value", func() bool { return strings.Contains(example.Read(t, a.Path("var", "app", ".env")), "~/é") })
	example.Eventually(t, "the docker file", func() bool { return strings.Contains(example.Read(t, a.Path("var", "app", "docker.env")), "~/é") })
	check(password, url, "it's app", " ~/é:~/x; (y) ")
}
