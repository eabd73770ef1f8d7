package config

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
)

var update = flag.Bool("update", false, "rewrite the golden files of testdata")

// parse reads src as if it were /etc/secretagent/agent.yaml.
func parse(src string) (*Config, error) { return Parse("/etc/secretagent/agent.yaml", []byte(src)) }

func mustParse(t *testing.T, src string) *Config {
	t.Helper()
	cfg, err := parse(src)
	must(t, err)
	return cfg
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func problemsOf(t *testing.T, err error) Problems {
	t.Helper()
	problems, ok := errors.AsType[Problems](err)
	if !ok {
		t.Fatalf("error %v", err)
	}
	return problems
}

func TestDefaults(t *testing.T) {
	cfg := mustParse(t, "upstream: {local: }\ncache:\nendpoint:\nsecrets:\n")
	if cfg.File() != "/etc/secretagent/agent.yaml" {
		t.Errorf("file %s", cfg.File())
	}
	if got, want := cfg.Upstream.Local, (&Local{
		Database: "/var/lib/secretagent/data/secrets.db", Keyring: "/var/lib/secretagent/keys/keyring.json",
		MaxVersions: 10, API: API{Socket: "/var/lib/secretagent/run/kms.sock"},
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("local\n got %+v\nwant %+v", got, want)
	}
	if got, want := cfg.Cache, (Cache{
		MaxEntries: 1000, MaxBytes: 64 << 20, TTL: 5 * time.Minute, MaxStale: 24 * time.Hour, NegativeTTL: 5 * time.Second,
		Forced: Forced{PerSecond: 10, Burst: 20},
	}); got != want {
		t.Errorf("cache\n got %+v\nwant %+v", got, want)
	}
	e := cfg.Endpoint
	if e.Listen != "127.0.0.1:2025" || e.Socket != "" || e.SocketMode != 0o600 || e.TokenFile != "/var/lib/secretagent/run/token" ||
		strings.Join(e.Headers, " ") != "X-KMS-Token X-Vault-Token X-Aws-Parameters-Secrets-Token" || e.PathPrefix != "/v1/" ||
		e.MaxConnections != 800 || e.Format != "kms" || e.Audit != nil || e.TLS != nil {
		t.Errorf("endpoint %+v", e)
	}
	if cfg.Exec != nil || cfg.Secrets != nil || cfg.Templates != nil || cfg.Log != (Log{"info", "text"}) || cfg.Process != (Process{NoDump: true}) {
		t.Errorf("the rest %+v", cfg)
	}
}

func TestValues(t *testing.T) {
	cfg := mustParse(t, `
upstream:
  local:
    database: data/../s.db
    keyring: /run/credentials/keyring.json
    seed:
      - name: demo/db
        data: |
          line one
      - {name: demo/empty-json, versionId: "2", data: "{}"}
    api: {socket: off, listen: "[::1]:0", accessKeys: [{id: a, secretFile: k, actions: ["Get*"], secrets: [web/*]}]}
cache: {maxBytes: 1GiB, ttl: 1h30m, negativeTTL: 0s, sealed: }
endpoint: {listen: "", socket: agent.sock, socketMode: "0660", socketGroup: 1000}
secrets: [{name: "demo/db:ACSPrevious", ttl: 1m}]
templates:
  - {format: env, secrets: [{name: demo/db, keys: {username: DB_USER}}], destination: out/app.env, mode: "640", sync: false}
sets:
  - {directory: tls, files: [{name: tls.key, contents: "x"}, {name: tls.crt, source: crt.tmpl}], hook: {http: {url: "http://127.0.0.1:80/reload"}}}
`)
	l, m, set := cfg.Upstream.Local, cfg.Templates[0], cfg.Sets[0]
	for key, c := range map[string]struct{ got, want any }{
		"database":      {l.Database, Path("/etc/secretagent/s.db")},
		"keyring":       {l.Keyring, Path("/run/credentials/keyring.json")},
		"api.socket":    {l.API.Socket, Path("")},
		"seed data":     {string(l.Seed[0].Data.Reveal()), "line one\n"},
		"seed versions": {[]upstream.VersionID{l.Seed[0].VersionID, l.Seed[1].VersionID}, []upstream.VersionID{"v1", "2"}},
		"cache sizes":   {cfg.Cache.MaxBytes, ByteSize(1 << 30)},
		"cache times":   {[]time.Duration{cfg.Cache.TTL, cfg.Cache.NegativeTTL}, []time.Duration{90 * time.Minute, 0}},
		"sealed":        {cfg.Cache.Sealed.Path, Path("/var/lib/secretagent/data/cache.db")},
		"listen":        {cfg.Endpoint.Listen, ""},
		"socketMode":    {cfg.Endpoint.SocketMode.Perm(), fs.FileMode(0o660)},
		"socketGroup":   {cfg.Endpoint.SocketGroup, Account("1000")},
		"secret":        {cfg.Secrets, []Secret{{Name: upstream.SecretRef{SecretName: "demo/db", VersionStage: "ACSPrevious"}, TTL: time.Minute}}},
		"mode":          {m.Mode, FileMode(0o640)},
		"sync":          {[]bool{m.Sync, set.Sync}, []bool{false, true}},
		"keys":          {m.Secrets[0].Keys["username"], "DB_USER"},
		"onRemoved":     {m.OnRemoved, "keep"},
		"source":        {set.Files[1].Source, Path("/etc/secretagent/crt.tmpl")},
		"hook":          {[]any{set.Hook.HTTP.Method, set.Hook.Timeout}, []any{"POST", 30 * time.Second}},
		"files": {cfg.Files(), []string{"/etc/secretagent/agent.yaml", "/run/credentials/keyring.json", "/etc/secretagent/k",
			"/var/lib/secretagent/keys/keyring.json", "/var/lib/secretagent/run/token", "/etc/secretagent/crt.tmpl"}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s\n got %+v\nwant %+v", key, c.got, c.want)
		}
	}
}

// valid is a configuration without a mistake, one line per section, for mutations.
const valid = `upstream: {local: {api: {listen: "127.0.0.1:2026", accessKeys: [{id: a, secretFile: a.key, actions: ["*"], secrets: ["*"]}]}}}
cache: {ttl: 5m}
endpoint: {socket: a.sock, callers: [{name: web, uids: [1000], secrets: ["web/*"]}]}
secrets: [{name: demo/db}]
render: {root: out}
templates: [{source: a.tmpl, destination: out/a, hook: {command: [true-command]}}]
sets: [{directory: out/set, files: [{name: a, contents: x}]}]
exec: {command: [sh], env: [{name: A, secret: demo/db, field: password}]}
log: {level: info}
`

// TestMountsAreNamesOrSections holds the short form of a section of which one key is enough.
func TestMountsAreNamesOrSections(t *testing.T) {
	cfg := mustParse(t, "upstream: {local: {}}\nendpoint: {vaultMounts: [secret, {name: kv, version: 1}]}\n")
	if got, want := cfg.Endpoint.VaultMounts, []VaultMount{{Name: "secret"}, {Name: "kv", Version: 1}}; !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestMistakes(t *testing.T) {
	mustParse(t, valid)
	for _, c := range []struct {
		name string
		old  string // replaced in valid; empty: the whole of it
		new  string
		want string // key, value and reason of the one problem
	}{
		{"nothing at all", "", "", "upstream: is missing: it must be set"},
		{"only a comment", "", "# nothing\n", "upstream: is missing: it must be set"},
		{"not a mapping", "", "- a\n", "must be a section with keys: upstream, cache, endpoint, secrets, render, templates, sets, exec, rotations, log, metrics, process, readyWhen"},
		{"no backend", "", "upstream: {}\n", "upstream: must contain local, etcd or alibaba"},
		{"two backends", "", "upstream: {local: , alibaba: {endpoints: [{region: cn-hangzhou}]}}\n", "upstream: must contain only one of local, etcd and alibaba"},
		{"another case", "ttl: 5m", "max_entries: 5", "cache.max_entries: unknown key; did you mean maxEntries?"},
		{"a key given twice", "ttl: 5m", "ttl: 5m, ttl: 6m", "cache.ttl: is given twice: keep one"},
		{"a duration without unit", "ttl: 5m", "ttl: 300", "cache.ttl: 300: must have a unit, such as 30s, 5m or 24h"},
		{"no duration", "ttl: 5m", "ttl: soon", "cache.ttl: soon: must be a duration such as 30s, 5m or 1h30m"},
		{"a size out of range", "ttl: 5m", "maxBytes: 9999999999GiB", "cache.maxBytes: 9999999999GiB: must be a size such as 512KiB, 64MiB or 1GiB"},
		{"a small size", "ttl: 5m", "maxBytes: 1KiB", "cache.maxBytes: 1KiB: must be from 64KiB to 64GiB"},
		{"text for a number", "ttl: 5m", `maxEntries: "5"`, "cache.maxEntries: 5: must be a whole number"},
		{"a value outside the list", "level: info", "level: inf", "log.level: inf: must be one of debug, info, warn, error; did you mean info?"},
		{"yes for true", "level: info", "level: info}\nprocess: {noDump: yes", "process.noDump: yes: must be true or false"},
		{"an anchor", "ttl: 5m", "ttl: &a 5m", "cache.ttl: YAML anchors, aliases and tags are not supported: write the value out"},
		{"a tag", "ttl: 5m", "ttl: !!str 5m", "cache.ttl: YAML anchors, aliases and tags are not supported: write the value out"},
		{"a merge key", "ttl: 5m", "<<: {ttl: 5m}", "cache.<<: YAML merge keys are not supported: write the keys out"},
		{"a second document", "log: {level: info}", "---\nlog: {level: info}", "a second document starts here: a configuration has one"},
		{"not YAML", "ttl: 5m}", "ttl: 5m", "not YAML: ',' or '}' must be specified"},
		{"not UTF-8", "demo/db", "demo\xffdb", "this line is not UTF-8 text"},
		{"an agent for nobody", "", "upstream: {local: }\nendpoint: {listen: off}\n",
			"endpoint.socket: must be set when endpoint.listen is off, unless there are credentials, templates, sets, exec or rotations: nobody could use the agent"},
		{"a caller by uid without socket", "socket: a.sock, ", "", "endpoint.callers[0].uids: works on endpoint.socket only, which is not set"},
		{"a shared token", "callers: [", `callers: [{name: a, tokenFile: a.token, secrets: [x]}, {name: b, tokenFile: a.token, secrets: [x]}, `,
			"endpoint.callers[1].tokenFile: /etc/secretagent/a.token: is used twice: give every caller a token of its own"},
		{"a token for all beside callers", "endpoint: {", "endpoint: {tokenFile: all.token, ",
			"endpoint.tokenFile: /etc/secretagent/all.token: opens nothing where endpoint.callers are set: give it to one of them"},
		{"an audit log to nowhere", "endpoint: {", "endpoint: {audit: , ", "endpoint.audit: must set file or stderr"},
		{"a mount that is a number", "endpoint: {", "endpoint: {vaultMounts: [2], ", "endpoint.vaultMounts[0].name: 2: must be text: put it in quotes"},
		{"a mount without a name", "endpoint: {", "endpoint: {vaultMounts: [{version: 1}], ", "endpoint.vaultMounts[0].name: is missing: it must be set"},
		{"a mount of version 3", "endpoint: {", "endpoint: {vaultMounts: [{name: kv, version: 3}], ", "endpoint.vaultMounts[0].version: 3: must be from 1 to 2"},
		{"a mount that is a list", "endpoint: {", "endpoint: {vaultMounts: [[kv]], ", "endpoint.vaultMounts[0]: must be a section with keys: name, version"},
		{"one socket for two", "socket: a.sock", "socket: a.sock, credentials: {socket: a.sock, units: {app.service: [app/db]}}",
			"endpoint.credentials.socket: /etc/secretagent/a.sock: must be another one than endpoint.socket"},
		{"credentials for nobody", "socket: a.sock", "socket: a.sock, credentials: {socket: b.sock}", "endpoint.credentials.units: is missing: it must be set"},
		{"a unit without a list", "socket: a.sock", "socket: a.sock, credentials: {socket: b.sock, units: {app.service: app/db}}",
			"endpoint.credentials.units.app.service: must be a list, written [a, b] or with one \"- \" line per element"},
		{"a number for a secret", "socket: a.sock", "socket: a.sock, credentials: {socket: b.sock, units: {app.service: {db: 5}}}",
			"endpoint.credentials.units.app.service.db: 5: must be text: put it in quotes"},
		{"an empty element", "secrets: [{name: demo/db}]", "secrets: [{name: demo/db}, ~]", "secrets[1]: is an empty element: fill it in or remove it"},
		{"no destination", "destination: out/a, ", "", "templates[0].destination: is missing: it must be set"},
		{"the same destination twice", "templates: [", "templates: [{source: b.tmpl, destination: out/a}, ",
			"templates[1].destination: /etc/secretagent/out/a: templates[0].destination writes the same path: choose another"},
		{"one port for two", "log: {level: info}", `metrics: {listen: "127.0.0.1:2026"}`,
			"upstream.local.api.listen: 127.0.0.1:2026: metrics.listen is 127.0.0.1:2026: choose another port"},
		{"the port of every address", "log: {level: info}", `metrics: {listen: "0.0.0.0:2025"}`,
			"metrics.listen: 0.0.0.0:2025: endpoint.listen is 127.0.0.1:2025: choose another port"},
		{"over the configuration", "destination: out/a", "destination: agent.yaml",
			"templates[0].destination: /etc/secretagent/agent.yaml: is the configuration itself: choose another"},

		{"an API that nobody may use", `, accessKeys: [{id: a, secretFile: a.key, actions: ["*"], secrets: ["*"]}]`, "",
			"upstream.local.api.accessKeys: must hold a key: without one nobody can use api.listen"},
		{"an object as seed", "local: {", `local: {seed: [{name: x, data: {password: hunter2}}], `, "upstream.local.seed[0].data: must be a single value, not a section or list"},
		{"a comma in a seed without quotes", "local: {", `local: {seed: [{name: x, data: first,hunter2}], `, "upstream.local.seed[0].…: unknown key; allowed here: name, versionId, data; or a value with a comma lacks its quotes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := c.new
			if c.old != "" {
				if src = strings.Replace(valid, c.old, c.new, 1); src == valid {
					t.Fatalf("%q is not in the valid configuration", c.old)
				}
			}
			cfg, err := parse(src)
			problems := problemsOf(t, err)
			if cfg != nil || len(problems) != 1 {
				t.Fatalf("config %v, error %v", cfg, err)
			}
			got := problems[0]
			text := strings.TrimPrefix(strings.Join([]string{got.Key, got.Value, got.Reason}, ": "), ": ")
			if text = strings.ReplaceAll(text, ": : ", ": "); strings.TrimPrefix(text, ": ") != c.want {
				t.Errorf("\n got %s\nwant %s", text, c.want)
			}
			if got.Line < 1 || got.Column < 1 {
				t.Errorf("no position: %+v", got)
			}
			if strings.Contains(problems.Report(), "hunter2") {
				t.Errorf("a secret is shown:\n%s", problems.Report())
			}
		})
	}
}

// TestGolden holds the whole reports of the files in testdata, each named after its mistake: every
// problem at once, in the order of the file.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			_, err := Load(file)
			problems := problemsOf(t, err)
			got, golden := problems.Report(), strings.TrimSuffix(file, ".yaml")+".golden"
			if *update {
				must(t, os.WriteFile(golden, []byte(got), 0o666))
			}
			want, err := os.ReadFile(golden)
			must(t, err)
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if strings.Contains(got, "hunter2") {
				t.Error("a secret is shown")
			}
			if lines := strings.Split(problems.Error(), "\n"); len(lines) != len(problems) {
				t.Errorf("%d lines for %d problems", len(lines), len(problems))
			}
		})
	}
}

func TestProblemsAreBounded(t *testing.T) {
	_, err := parse("upstream: {local: }\n" + strings.Repeat("x: 1\n", 1000))
	problems := problemsOf(t, err)
	if len(problems) != maxProblems+1 || !strings.Contains(problems[maxProblems].Reason, "more problems") {
		t.Errorf("%d problems", len(problems))
	}
}

func TestDeepNestingIsRefused(t *testing.T) {
	for _, src := range []string{
		strings.Repeat("[", 500_000), strings.Repeat("{a: ", 100_000), strings.Repeat("- ", 100_000) + "x",
		strings.Repeat("? ", 100_000), "a: " + strings.Repeat("!t ", 100_000) + "x", deepBlock(600),
	} {
		if cfg, err := parse(src); err == nil {
			t.Errorf("%.20s… gives %+v", src, cfg)
		}
	}
}

func deepBlock(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func TestLoadSaysWhyAFileCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yaml")
	must(t, os.WriteFile(large, make([]byte, maxFileSize+1), 0o600))
	for path, want := range map[string]string{
		filepath.Join(dir, "missing.yaml"): "missing.yaml: no such file or directory",
		dir:                                "is a directory; docker makes one where",
		large:                              "large.yaml: is larger than 1 MiB, the most that is read",
	} {
		_, err := Load(path)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	if _, err := Load(filepath.Join(dir, "missing.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the cause is lost: %v", err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{}
	find := func(explicit string) string {
		path, err := Find(explicit, func(k string) string { return env[k] }, dir)
		if err != nil {
			return err.Error()
		}
		return path
	}
	if _, err := os.Stat(fileSystem); err == nil {
		t.Skip("this host has a configuration of its own")
	}
	if got := find(""); !strings.Contains(got, "no configuration file") || !strings.Contains(got, "--config") {
		t.Errorf("nothing there: %s", got)
	}
	for _, name := range []string{"agent.example.yaml", "agent.yaml"} { // least wanted first
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, nil, 0o600))
		if got := find(""); got != path {
			t.Errorf("got %s, want %s", got, path)
		}
	}
	env["SECRETAGENT_CONFIG"] = "/from/env.yaml"
	if got := find(""); got != "/from/env.yaml" {
		t.Errorf("environment: %s", got)
	}
	if got := find("given.yaml"); got != "given.yaml" {
		t.Errorf("explicit: %s", got)
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]ByteSize{"0": 0, "5": 5, "5B": 5, "64KiB": 64 << 10, "64 MiB": 64 << 20, "2GiB": 2 << 30} {
		got, err := parseByteSize(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
}

// A short ttl alone must not collide with the default of negativeTTL.
func TestNegativeTTLFollowsAShortTTL(t *testing.T) {
	if got := mustParse(t, "upstream: {local: {}}\ncache: {ttl: 1s}\n").Cache.NegativeTTL; got != time.Second {
		t.Errorf("negativeTTL is %s", got)
	}
}
