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

// TestCheckRefusesWhatRunRefuses breaks one thing at a time: rules of each part, and what only a
// look at the machine shows. Whatever Load accepts New opens, and what New refuses Load refuses,
// as one problem with key, value and reason, at a line and column, and without making a file.
func TestCheckRefusesWhatRunRefuses(t *testing.T) {
	for _, c := range []struct {
		name, old, new string // replaced in wellFormed; an empty old: all of it
		want           string // key, value and reason of the problem, or how they begin
		files          map[string]string
	}{
		{name: "nothing wrong"},
		{"a remembered refusal beyond ttl", "ttl: 5m", "negativeTTL: 10m", "cache.negativeTTL: 10m0s: must not be longer than cache.ttl, 5m0s", nil},
		{"a secret declared twice", "secrets: [{name: demo/db}]", "secrets: [{name: demo/db}, {name: \"demo/db:ACSCurrent\"}]",
			"secrets[1].name: demo/db:ACSCurrent: is declared twice: keep one", nil},
		{"a public endpoint", "localhost:0", "0.0.0.0:2025", "endpoint.listen: 0.0.0.0:2025: is no loopback address: listen on 127.0.0.1, or set allowNonLoopback and tls", nil},
		{"a public endpoint without TLS", `listen: "localhost:0"`, `allowNonLoopback: true, listen: ":2025"`,
			"endpoint.listen: :2025: is no loopback address: set tls, or listen on 127.0.0.1", nil},
		{"an address without port", "localhost:0", "127.0.0.1", "endpoint.listen: 127.0.0.1: must be host:port, such as 127.0.0.1:2025, or off", nil},
		{"an open API", "127.0.0.1:0", "10.0.0.1:2026", "upstream.local.api.listen: 10.0.0.1:2026: is no loopback address: set tls, or listen on 127.0.0.1", nil},
		{"metrics on a network", "process:", "metrics: {listen: \"0.0.0.0:0\"}\nprocess:", "", nil},
		{"metrics on no port", "process:", "metrics: {listen: localhost}\nprocess:", "metrics.listen: localhost: must be host:port, such as 127.0.0.1:2025, or off", nil},
		{"metrics with a token that is too short", "process:", "metrics: {listen: \"0.0.0.0:0\", tokenFile: token}\nprocess:", "metrics.tokenFile: DIR/token: ", map[string]string{"token": "x"}},
		{"metrics without their certificate", "process:", "metrics: {listen: \"0.0.0.0:0\", tls: {certFile: x.pem, keyFile: a.tmpl}}\nprocess:", "metrics.tls.certFile: DIR/x.pem: cannot be read", nil},
		{"a group that does not exist", "socket: a.sock", "socket: a.sock, socketGroup: no-such-group", "endpoint.socketGroup: no-such-group: ", nil},
		{"a caller that nothing identifies", "uids: [1000], ", "", "endpoint.callers[0]: must have a tokenFile, uids or gids: nothing tells who it is", nil},
		{"a token of a caller that is too short", "uids: [1000]", "tokenFile: web.token", "", map[string]string{"web.token": "x"}},
		{"the token of all that is too short", "callers: [{name: web, uids: [1000], secrets: [\"web/*\"]}]", "tokenFile: token", "endpoint.tokenFile: DIR/token: ", map[string]string{"token": "x"}},
		{"a token that is a folder", "callers: [{name: web, uids: [1000], secrets: [\"web/*\"]}]", "tokenFile: out", "endpoint.tokenFile: read DIR/out: is not a regular file", nil},
		{"a token that cannot be made", "callers: [{name: web, uids: [1000], secrets: [\"web/*\"]}]", "tokenFile: a.tmpl/token", "endpoint.tokenFile: ", nil},
		{"a certificate that is missing", `listen: "localhost:0"`, `tls: {certFile: x.pem, keyFile: a.tmpl}, listen: "localhost:0"`, "endpoint.tls.certFile: DIR/x.pem: cannot be read", nil},
		{"a unit without its type", "socket: a.sock", `socket: a.sock, credentials: {socket: c.sock, units: {app: ["app/*"]}}`, "endpoint.credentials.units.app: must be the whole name of a unit, as in app.service", nil},
		{"two stars for a credential", "socket: a.sock", `socket: a.sock, credentials: {socket: c.sock, units: {app.service: [tls, "a/*/*"]}}`, "endpoint.credentials.units.app.service[1]: a/*/*: must have one star at most", nil},
		{"a credential that is no name", "socket: a.sock", `socket: a.sock, credentials: {socket: c.sock, units: {app.service: {a/b: app/db}}}`, "endpoint.credentials.units.app.service.a/b: app/db: must be for a credential", nil},
		{"a unit that gets nothing", "socket: a.sock", `socket: a.sock, credentials: {socket: c.sock, units: {app.service: []}}`, "endpoint.credentials.units.app.service: must not be empty", nil},
		{"credentials for services", "socket: a.sock", `socket: a.sock, credentials: {socket: c.sock, units: {app.service: [app/db], "web@*.service": {db: "web/%i/db:ACSPrevious"}}}`, "", nil},
		{"an audit log in a new folder", "socket: a.sock", "socket: a.sock, audit: {file: new/log/audit.log}", "", nil},
		{"an audit log below a file", "socket: a.sock", "socket: a.sock, audit: {file: a.tmpl/audit.log}", "endpoint.audit.file: ", nil},
		{"climbing out of the root", "out/a", "out/../a", "templates[0].destination: DIR/a: is outside render.root, DIR/out", nil},
		{"a template that is missing", "a.tmpl", "b.tmpl", "templates[0].source: DIR/b.tmpl: cannot be read", nil},
		{"a template that does not compile", "a.tmpl", "b.tmpl", "templates[0].source: DIR/b.tmpl:2:", map[string]string{"b.tmpl": "one\n  {{ nope }}\n"}},
		{"a hook that does not exist", "hook: {command: [sh]}", "hook: {command: [./no-such-hook]}", "templates[0].hook.command: ./no-such-hook: must start with a program that can be run", nil},
		{"a file name with a slash", "{name: a, contents: x}", "{name: a/b, contents: x}", "sets[0].files[0].name: a/b: must be a file name: not empty, no slash, no leading dot", nil},
		{"a state folder that is a file", "root: out", "root: out, stateDir: a.tmpl", "render.stateDir: DIR/a.tmpl: must be a directory", nil},
		{"a bad variable", "name: A,", "name: 1A,", "exec.env[0].name: 1A: must be a variable name: letters, digits and underscores, no digit first", nil},
		{"an application that does not exist", "exec: {command: [sh]", "exec: {command: [no-such-program]", "exec.command: must start with a program that can be run: ", nil},
		{"a seed of the service", "local: {", `local: {seed: [{name: acs/x, data: d}], `, "upstream.local.seed[0].name: acs/x: names that start with acs/ belong to the service", nil},
		{"a keyring that others read", "", "upstream: {local: {keyring: a.tmpl}}\n", "upstream.local.keyring: ", nil},
		{"an access key without secret", "a.key", "empty.key", "", map[string]string{"empty.key": ""}},
		{"a pattern for secrets that matches none", `secrets: ["*"]}]}}}`, `secrets: ["demo/?"]}]}}}`,
			"upstream.local.api.accessKeys[0].secrets[0]: demo/?: must be the name of a secret, with * for any text", nil},
		{"a host that is none", "", "upstream: {alibaba: {endpoints: [{region: cn-hangzhou, host: \"999.1.1.1:99999\"}]}}\n",
			"upstream.alibaba.endpoints[0].host: 999.1.1.1:99999: must be a host name", nil},
		{"a CA that is missing", "", "upstream: {alibaba: {endpoints: [{region: cn-hangzhou, caFile: no.pem}]}}\n", "upstream.alibaba.endpoints[0].caFile: ", nil},
		{"a token in a URL", "", "upstream: {alibaba: {endpoints: [{region: cn-hangzhou}], credentials: {type: credentials_uri, uri: \"ftp://x/?token=hunter2\"}}}\n",
			"upstream.alibaba.credentials.uri: must be an http or https URL", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := shortTempDir(t)
			path := filepath.Join(dir, "agent.yaml")
			must(t, os.Mkdir(filepath.Join(dir, "out"), 0o700))
			text := c.new
			if c.old != "" || c.want == "" {
				text = edited(wellFormed, c.old, c.new)
			}
			write(t, dir, map[string]string{"agent.yaml": text, "a.tmpl": "line one\n"})
			write(t, dir, c.files)
			before := namesBelow(t, dir)
			_, err := config.Load(path, agent.Check)
			if problems, _ := errors.AsType[config.Problems](err); c.want == "" {
				must(t, err)
			} else if len(problems) != 1 {
				t.Errorf("not one problem: %v", err)
			} else {
				p := problems[0]
				got := strings.Join(slices.DeleteFunc([]string{p.Key, p.Value, p.Reason}, func(s string) bool { return s == "" }), ": ")
				if want := strings.ReplaceAll(c.want, "DIR", dir); !strings.HasPrefix(got, want) {
					t.Errorf("\n got %s\nwant %s", got, want)
				}
				if p.Line < 1 || p.Column < 1 || p.Excerpt == "" || strings.Contains(p.Excerpt+got, "hunter2") {
					t.Errorf("no place, or a secret is shown: %+v", p)
				}
			}
			if after := namesBelow(t, dir); !slices.Equal(before, after) {
				t.Errorf("the check made files: %q, before %q", after, before)
			}
			cfg, err := config.Load(path) // the shape is right in any case
			must(t, err)
			a, err := agent.New(t.Context(), cfg, agent.Deps{})
			if err == nil {
				must(t, a.Close())
			}
			key, _, _ := strings.Cut(c.want, ": ")
			if (err == nil) != (key == "") || err != nil && !strings.Contains(err.Error(), key) {
				t.Errorf("New: %v", err)
			}
		})
	}
}

func namesBelow(t *testing.T, dir string) (names []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	}))
	return names
}
