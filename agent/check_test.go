package agent_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
)

// wellFormed is a configuration without a mistake, one line per section, for mutations.
const wellFormed = `upstream: {local: {api: {listen: "127.0.0.1:0", accessKeys: [{id: a, secretFile: a.key, actions: ["*"], secrets: ["*"]}]}}}
cache: {ttl: 5m}
endpoint: {listen: "localhost:0", socket: a.sock, callers: [{name: web, uids: [1000], secrets: ["web/*"]}]}
secrets: [{name: demo/db}]
render: {root: out}
templates: [{source: a.tmpl, destination: out/a, hook: {command: [sh]}}]
sets: [{directory: out/set, files: [{name: a, contents: x}]}]
exec: {command: [sh], env: [{name: A, secret: demo/db, field: password}]}
process: {noDump: false}
`

// inFolder writes text as agent.yaml beside what wellFormed names, and returns its path.
func inFolder(t *testing.T, text string) string {
	t.Helper()
	dir := shortTempDir(t)
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "agent.yaml"), []byte(text), 0o600),
		os.WriteFile(filepath.Join(dir, "a.tmpl"), []byte("line one\n"), 0o600),
		os.Mkdir(filepath.Join(dir, "out"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "agent.yaml")
}

// mutated replaces old in wellFormed; an empty old replaces all of it.
func mutated(t *testing.T, old, new string) string {
	t.Helper()
	if old == "" {
		return new
	}
	text := strings.Replace(wellFormed, old, new, 1)
	if text == wellFormed {
		t.Fatalf("%q is not in the valid configuration", old)
	}
	return text
}

// TestMistakesOfParts: what a part does not accept is one problem, with the key, value and reason
// that help, at a line and column.
func TestMistakesOfParts(t *testing.T) {
	alibaba := func(keys string) string {
		return "upstream: {alibaba: {endpoints: [{region: cn-hangzhou}], " + keys + "}}\n"
	}
	for _, c := range []struct {
		name string
		old  string // replaced in wellFormed; empty: the whole of it
		new  string
		want string // key, value and reason of the one problem
	}{
		{"negative cache beyond ttl", "ttl: 5m", "negativeTTL: 10m", "cache.negativeTTL: 10m0s: must not be longer than cache.ttl, 5m0s"},
		{"a public endpoint", "localhost:0", "0.0.0.0:2025",
			"endpoint.listen: 0.0.0.0:2025: is no loopback address: listen on 127.0.0.1, or set allowNonLoopback and tls"},
		{"a public endpoint without TLS", `listen: "localhost:0"`, `allowNonLoopback: true, listen: ":2025"`,
			"endpoint.listen: :2025: is no loopback address: set tls, or listen on 127.0.0.1"},
		{"an address without port", "localhost:0", "127.0.0.1", "endpoint.listen: 127.0.0.1: must be host:port, such as 127.0.0.1:2025, or off"},
		{"a caller that nothing identifies", "uids: [1000], ", "", "endpoint.callers[0]: must have a tokenFile, uids or gids: nothing tells who it is"},
		{"a caller that reads nothing", `["web/*"]`, "[]", `endpoint.callers[0].secrets: must not be empty; ["*"] allows everything`},
		{"no token header", "endpoint: {", "endpoint: {headers: [], ", "endpoint.headers: must name at least one header: a token is always required"},
		{"a prefix that hides the rest", "endpoint: {", "endpoint: {pathPrefix: /, ", "endpoint.pathPrefix: /: would hide the other paths of the endpoint"},
		{"a secret declared twice", "secrets: [{name: demo/db}]", "secrets: [{name: demo/db}, {name: \"demo/db:ACSCurrent\"}]", "secrets[1].name: demo/db:ACSCurrent: is declared twice: keep one"},
		{"no source", "source: a.tmpl, ", "", "templates[0]: must have source, contents or format"},
		{"two sources", "source: a.tmpl, ", "source: a.tmpl, contents: x, ", "templates[0]: must have only one of source, contents and format"},
		{"a format without secrets", "source: a.tmpl, ", "format: env, ", "templates[0].secrets: must name what format env writes"},
		{"outside the root", "out/a", "other/a", "templates[0].destination: DIR/other/a: is outside render.root, DIR/out"},
		{"climbing out of the root", "out/a", "out/../a", "templates[0].destination: DIR/a: is outside render.root, DIR/out"},
		{"inside a set", "out/a", "out/set/b", "templates[0].destination: DIR/out/set/b: lies in the directory of sets[0], which holds nothing else"},
		{"a mode for everyone", "source: a.tmpl, ", `source: a.tmpl, mode: "0666", `, "templates[0].mode: 0666: must not let everyone write"},
		{"an empty hook", "{command: [sh]}", "", "templates[0].hook: must have command, signal or http"},
		{"a hook that leaves the host", "{command: [sh]}", `{http: {url: "http://example.com/"}}`, "templates[0].hook.http.url: must point to a loopback host, such as 127.0.0.1"},
		{"a file name with a slash", "{name: a, contents: x}", "{name: a/b, contents: x}", "sets[0].files[0].name: a/b: must be a file name: not empty, no slash, no leading dot"},
		{"a bad variable", "name: A,", "name: 1A,", "exec.env[0].name: 1A: must be a variable name: letters, digits and underscores, no digit first"},
		{"an open API", "127.0.0.1:0", "10.0.0.1:2026", "upstream.local.api.listen: 10.0.0.1:2026: is no loopback address: set tls, or listen on 127.0.0.1"},
		{"a seed of the service", "local: {", `local: {seed: [{name: acs/x, data: d}], `, "upstream.local.seed[0].name: acs/x: names that start with acs/ belong to the service"},
		{"an empty seed", "local: {", `local: {seed: [{name: x, data: ""}], `, "upstream.local.seed[0].data: must have 1 to 30720 bytes, these are 0"},
		{"an empty list of endpoints", "", "upstream: {alibaba: {endpoints: []}}\n", "upstream.alibaba.endpoints: must hold at least one endpoint"},
		{"plain http to the cloud", "", "upstream: {alibaba: {endpoints: [{region: cn-hangzhou, scheme: http, host: kms.example}]}}\n",
			"upstream.alibaba.endpoints[0].scheme: http: plain http is allowed for a loopback host only: use https"},
		{"a URL as host", "", "upstream: {alibaba: {endpoints: [{region: cn-hangzhou, host: \"https://kms.example\"}]}}\n",
			"upstream.alibaba.endpoints[0].host: https://kms.example: must be a host name, with :port if need be; the scheme has a key of its own"},
		{"a deadline below the timeout", "", alibaba("deadline: 1s"), "upstream.alibaba.deadline: 1s: must not be shorter than timeout, 5s: no attempt could use it"},
		{"a missing credential", "", alibaba("credentials: {type: access_key, accessKeyIdFile: id}"), "upstream.alibaba.credentials.accessKeySecretFile: is missing: type access_key needs it"},
		{"a credential of another type", "", alibaba("credentials: {type: ecs_ram_role, uri: \"http://127.0.0.1/\"}"), "upstream.alibaba.credentials.uri: is not used by type ecs_ram_role; it belongs to credentials_uri"},
		{"half a key", "", alibaba("credentials: {type: ram_role_arn, roleArn: \"acs:ram::1:role/x\", accessKeyIdFile: id}"), "upstream.alibaba.credentials: must have both accessKeyIdFile and accessKeySecretFile, or none"},
		{"a token in a URL", "", alibaba("credentials: {type: credentials_uri, uri: \"ftp://x/?token=hunter2\"}"), "upstream.alibaba.credentials.uri: must be an http or https URL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := inFolder(t, mutated(t, c.old, c.new))
			problem := onlyProblem(t, path)
			text := problem.Key
			for _, part := range []string{problem.Value, problem.Reason} {
				if part != "" {
					text += ": " + part
				}
			}
			if want := strings.ReplaceAll(c.want, "DIR", filepath.Dir(path)); text != want {
				t.Errorf("\n got %s\nwant %s", text, want)
			}
			if strings.Contains(problem.Excerpt, "hunter2") || strings.Contains(text, "hunter2") {
				t.Errorf("a secret is shown: %s\n%s", text, problem.Excerpt)
			}
		})
	}
}

// onlyProblem loads a configuration that has one problem, which has a place.
func onlyProblem(t *testing.T, path string) *config.Error {
	t.Helper()
	cfg, err := agent.Load(path)
	problems, ok := errors.AsType[config.Problems](err)
	if cfg != nil || !ok || len(problems) != 1 {
		t.Fatalf("config %v, error %v", cfg, err)
	}
	if problems[0].Line < 1 || problems[0].Column < 1 || problems[0].Excerpt == "" {
		t.Errorf("no place: %+v", problems[0])
	}
	return problems[0]
}

// TestCheckRefusesWhatRunRefuses breaks, one at a time, what only a look at the machine shows.
// Whatever Load accepts New opens, and what New refuses Load refuses, with a place in the file.
func TestCheckRefusesWhatRunRefuses(t *testing.T) {
	for _, c := range []struct {
		name, old, new string
		key, reason    string
		files          map[string]string // :: name → content, written beside agent.yaml
	}{
		{name: "nothing wrong"},
		{"a host that is none", "", "upstream: {alibaba: {endpoints: [{region: cn-hangzhou, host: \"999.1.1.1:99999\"}]}}\n",
			"upstream.alibaba.endpoints[0].host", "must be a host name", nil},
		{"a pattern for secrets that matches none", `secrets: ["*"]}]}}}`, `secrets: ["demo/?"]}]}}}`,
			"upstream.local.api.accessKeys[0].secrets[0]", "must be the name of a secret, with * for any text", nil},
		{"an application that does not exist", "exec: {command: [sh]", "exec: {command: [no-such-program]", "exec.command", "executable file not found", nil},
		{"a hook that does not exist", "hook: {command: [sh]}", "hook: {command: [./no-such-hook]}", "templates[0].hook.command", "must start with a program that can be run", nil},
		{"a token that is too short", "uids: [1000]", "tokenFile: web.token", "endpoint.callers[0].tokenFile", "web.token", map[string]string{"web.token": "x"}},
		{"a token that is a folder", "uids: [1000]", "tokenFile: out", "endpoint.callers[0].tokenFile", "is not a regular file", nil},
		{"a token that cannot be made", "uids: [1000]", "tokenFile: a.tmpl/token", "endpoint.callers[0].tokenFile", "a", nil},
		{"two callers with one token", "uids: [1000], secrets: [\"web/*\"]}", "tokenFile: a.token, secrets: [x]}, {name: b, tokenFile: b.token, secrets: [x]}",
			"endpoint.callers[1].tokenFile", "token of its own", map[string]string{"a.token": strings.Repeat("t", 40), "b.token": strings.Repeat("t", 40)}},
		{"a template that is missing", "a.tmpl", "b.tmpl", "templates[0].source", "cannot be read", nil},
		{"a template that does not compile", "a.tmpl", "b.tmpl", "templates[0].source", "b.tmpl:2:", map[string]string{"b.tmpl": "one\n  {{ nope }}\n"}},
		{"a keyring that others read", "", "upstream: {local: {keyring: a.tmpl}}\n", "upstream.local.keyring", "a.tmpl", nil},
		{"an access key without secret", "a.key", "empty.key", "upstream.local.api.accessKeys[0].secretFile", "is empty", map[string]string{"empty.key": ""}},
		{"a certificate that is missing", `listen: "localhost:0"`, `tls: {certFile: x.pem, keyFile: a.tmpl}, listen: "localhost:0"`,
			"endpoint.tls.certFile", "cannot be read", nil},
		{"a group that does not exist", "socket: a.sock", "socket: a.sock, socketGroup: no-such-group", "endpoint.socketGroup", "unknown group", nil},
		{"a CA that is missing", "", "upstream: {alibaba: {endpoints: [{region: cn-hangzhou, caFile: no.pem}]}}\n", "upstream.alibaba.endpoints[0].caFile", "no.pem", nil},
		{"a state folder that is a file", "root: out", "root: out, stateDir: a.tmpl", "render.stateDir", "must be a directory", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := wellFormed
			if c.key != "" {
				text = mutated(t, c.old, c.new)
			}
			path := inFolder(t, text)
			for name, content := range c.files {
				if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := namesBelow(t, filepath.Dir(path))
			if c.key == "" {
				if _, err := agent.Load(path); err != nil {
					t.Fatal(err)
				}
			} else if problem := onlyProblem(t, path); problem.Key != c.key || !strings.Contains(problem.Reason+problem.Value, c.reason) {
				t.Errorf("got %v", problem)
			}
			if after := namesBelow(t, filepath.Dir(path)); !slices.Equal(before, after) {
				t.Errorf("the check made files: %q, before %q", after, before)
			}
			cfg, err := config.Load(path) // the shape is right in any case
			if err != nil {
				t.Fatal(err)
			}
			a, err := agent.New(t.Context(), cfg, agent.Deps{})
			if (err != nil) != (c.key != "") {
				t.Errorf("New: %v", err)
			}
			if err == nil {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			} else if !strings.Contains(err.Error(), c.key) {
				t.Errorf("New names no key: %v", err)
			}
		})
	}
}

func namesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
