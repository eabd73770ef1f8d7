package convert_test

import (
	"encoding/base64"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/txtar"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/agent/convert"
	"secretagent/upstream"
)

var update = flag.Bool("update", false, "rewrite the wanted part of testdata/*.txtar")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// options are those of every test: what a template may call is what render says.
func options(from string, read func(string) ([]byte, error)) convert.Options {
	return convert.Options{From: from, Mounts: map[string]string{}, Env: map[string]string{}, ReadFile: read, Function: agent.HasTemplateFunction}
}

func noFile(string) ([]byte, error) { return nil, os.ErrNotExist }

// TestGolden converts the input of every story, runs what "secretagent check" runs on the result, and,
// where the story has secrets, stores them in the built-in backend and renders the files.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	must(t, err)
	if len(paths) < 12 {
		t.Fatalf("only %d stories", len(paths))
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			if runtime.GOOS == "windows" {
				t.Skip("the stories run sh")
			}
			archive, err := txtar.ParseFile(path)
			must(t, err)
			want, secrets, inputs := map[string]string{}, map[string]string{}, map[string]string{}
			opts, input := options("", nil), ""
			var story []txtar.File
			for _, f := range archive.Files {
				text := string(f.Data)
				if name, ok := strings.CutPrefix(f.Name, "want/"); ok {
					want[name] = text
					continue
				}
				story = append(story, f)
				if name, ok := strings.CutPrefix(f.Name, "secrets/"); ok {
					secrets[name] = strings.TrimSuffix(text, "\n")
				} else if f.Name == "args" {
					args := strings.Fields(text)
					for i := 0; i+1 < len(args); i += 2 {
						name, value, _ := strings.Cut(args[i+1], "=")
						map[string]map[string]string{"--mount": opts.Mounts, "--env": opts.Env}[args[i]][name] = value
					}
				} else if input == "" {
					input, opts.From = f.Name, strings.TrimSuffix(f.Name, filepath.Ext(f.Name))
				}
				inputs[f.Name] = text
			}
			opts.ReadFile = func(path string) ([]byte, error) {
				if text, ok := inputs[path]; ok {
					return []byte(text), nil
				}
				return nil, os.ErrNotExist
			}
			result, err := convert.Config(input, []byte(inputs[input]), opts)
			must(t, err)
			got := []txtar.File{{Name: "agent.yaml", Data: []byte(result.Config)}}
			dir := t.TempDir()
			cfg := load(t, dir, result.Config)
			if len(secrets) > 0 {
				store(t, cfg, secrets)
				must(t, agent.RenderOnce(t.Context(), cfg, agent.Deps{}, agent.RenderOptions{NoHooks: true}))
				for _, out := range cfg.Templates {
					b, err := os.ReadFile(string(out.Destination))
					must(t, err)
					if !utf8.Valid(b) {
						b = []byte("base64: " + base64.StdEncoding.EncodeToString(b) + "\n")
					} else if len(b) == 0 || b[len(b)-1] != '\n' {
						b = append(b, "<no newline>\n"...)
					}
					name, err := filepath.Rel(filepath.Join(dir, "out"), string(out.Destination))
					must(t, err)
					got = append(got, txtar.File{Name: "out/" + name, Data: b})
				}
			}
			if *update {
				for _, f := range got {
					f.Name = "want/" + f.Name
					story = append(story, f)
				}
				archive.Files = story
				must(t, os.WriteFile(path, txtar.Format(archive), 0o644))
				return
			}
			for _, f := range got {
				if string(f.Data) != want[f.Name] {
					t.Errorf("%s is\n%s\nnot\n%s", f.Name, f.Data, want[f.Name])
				}
			}
			again(t, input, inputs[input], opts, result)
		})
	}
}

// load writes a configuration and checks it as "secretagent check" does.
func load(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	path := filepath.Join(dir, "agent.yaml")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	cfg, err := config.Load(path, agent.Check)
	if problems, ok := errors.AsType[config.Problems](err); ok {
		t.Fatalf("%s\n%s", problems.Report(), text)
	}
	must(t, err)
	return cfg
}

func store(t *testing.T, cfg *config.Config, secrets map[string]string) {
	t.Helper()
	m, closeManager, err := agent.OpenManager(t.Context(), cfg, slog.New(slog.DiscardHandler), agent.StartFiles)
	must(t, err)
	for name, value := range secrets {
		_, err := m.CreateSecret(t.Context(), upstream.CreateSecretInput{
			SecretName: upstream.SecretName(name), VersionID: "v1", SecretData: upstream.NewSecretData([]byte(value)),
		})
		must(t, err)
	}
	must(t, closeManager())
}

// again converts with the templates in files of their own, which must be the same.
func again(t *testing.T, input, src string, opts convert.Options, inline convert.Result) {
	t.Helper()
	opts.Apart = true
	result, err := convert.Config(input, []byte(src), opts)
	must(t, err)
	dir := t.TempDir()
	for _, f := range result.Templates {
		path := filepath.Join(dir, f.Path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(f.Text), 0o600))
	}
	apart, together := load(t, dir, result.Config), load(t, t.TempDir(), inline.Config)
	if len(result.Templates) != len(together.Templates) || len(apart.Templates) != len(together.Templates) {
		t.Fatalf("%d files for %d templates", len(result.Templates), len(together.Templates))
	}
	for i, f := range result.Templates {
		if f.Text != together.Templates[i].Contents {
			t.Errorf("%s is\n%s\nand in agent.yaml\n%s", f.Path, f.Text, together.Templates[i].Contents)
		}
	}
}

// TestNothingIsLost puts keys that nobody knows at every level: each is named, with its line where the
// parser knows that, and no value of any key is in a note.
func TestNothingIsLost(t *testing.T) {
	const secret = "hunter2"
	for from, src := range map[string]string{
		"kms-agent": "Xa = \"hunter2\"\n[Server]\nXb = \"hunter2\"\n[KMS]\nRegion = \"cn-hangzhou\"\nXc = [[\"hunter2\"]]\n[Xd]\nk = 1\n[Cache]\nCacheSize = \"hunter2\"\n",
		"aws-agent": "Xa = \"hunter2\"\nssrf_env_variables = [\"hunter2\"]\nttl_seconds = \"hunter2\"\n[Xb]\nXb2 = \"hunter2\"\n",
		"vault-agent": `Xa = "hunter2"
vault { token = "hunter2" }
auto_auth { method "approle" { config = { secret_id = "hunter2" } } }
listener "tcp" { Xb = "hunter2" tls_disable = true }
listener "Xc" { address = "hunter2" }
template_config { Xd = ["hunter2"] }
template { destination = "a" Xe = "hunter2" wait { Xf = "hunter2" } exec { Xg = { hunter2 = "hunter2" } } contents = "" perms = "hunter2" }
env_template "V" { Xh = "hunter2" contents = "hunter2" }
exec { Xi = [["hunter2"]] command = ["sh"] }
listener "unix" { Xj = "hunter2" }
`,
		"consul-template": `Xa "label" { k = "hunter2" }
consul { auth { password = "hunter2" } }
exec { command = "sh" env { Xc = "hunter2" custom = ["P=hunter2"] } Xd = "hunter2" }
template { destination = "a" contents = "{{ frobnicate \"hunter2\" }}{{ keyOrDefault \"a\" \"hunter2\" }}{{ envOrDefault \"Xe\" \"hunter2\" }}" }
wait = "hunter2"
log_level = "hunter2"
`,
	} {
		result, err := convert.Config("f", []byte(src), options(from, noFile))
		must(t, err)
		comments, _, _ := strings.Cut(result.Config, "\nupstream:")
		for _, key := range regexp.MustCompile(`\bX[a-j]\b`).FindAllString(src, -1) {
			if !strings.Contains(comments, key) {
				t.Errorf("%s: %s is lost:\n%s", from, key, comments)
			}
		}
		if strings.Contains(comments, secret) {
			t.Errorf("%s: a value is in a comment:\n%s", from, comments)
		}
	}
}

// TestTokenVariables holds that a variable from which the agent takes its token needs no comment, and
// another one does.
func TestTokenVariables(t *testing.T) {
	for _, names := range [][]string{config.TokenVariables, {"KMS_TOKEN", "MY_TOKEN"}} {
		list := `"` + strings.Join(names, `", "`) + `"`
		for from, src := range map[string]string{
			"kms-agent": "[Server]\nSSRFEnvVariables = [" + list + "]\n[KMS]\nRegion = \"cn-hangzhou\"\n",
			"aws-agent": "ssrf_env_variables = [" + list + "]\n",
		} {
			result, err := convert.Config("f", []byte(src), options(from, noFile))
			must(t, err)
			noted := slices.ContainsFunc(result.Notes, func(n convert.Note) bool { return strings.Contains(n.Reason, "only the variables of the token") })
			if noted != slices.Contains(names, "MY_TOKEN") {
				t.Errorf("%s with %s: %v", from, list, result.Notes)
			}
		}
	}
}

// TestBadInput holds what is said of a file that cannot be read: its line, and none of its text.
func TestBadInput(t *testing.T) {
	deep := strings.Repeat("[", 1<<19)
	for _, c := range []struct{ from, src, want string }{
		{"vault-agent", "a = 1\nb = hunter2 hunter2\n", "f:2: is not HCL or JSON: "},
		{"vault-agent", "a = \"hunter2\n", "f:1: is not HCL or JSON: "},
		{"vault-agent", `{"a": hunter2}`, "f:1: is not HCL or JSON: "},
		{"vault-agent", `{"a": "\x"}`, "f:1: is not HCL or JSON: "},
		{"vault-agent", "a = 1\na = 2\n", "is not HCL or JSON: "},
		{"consul-template", "x = " + deep, "f:1: more than 100 brackets are open"},
		{"consul-template", "template {\n destination = \"a\"\n contents = <<E\nx\n{{ if hunter2 }}\nE\n}\n", "f:6: is not a template: unexpected EOF"},
		{"kms-agent", "a = 1\nb = hunter2\n", "f:2: is not TOML"},
		{"kms-agent", "a = " + deep, "f:1: more than 100 brackets are open"},
		{"kms-agent", "[Server]\n", "f: names neither region nor endpoint of KMS: give --region, such as --region cn-hangzhou"},
		{"aws-agent", "a = \"\xff\"", "f: is not UTF-8 text"},
		{"aws-agent", strings.Repeat("#", 1<<20+1), "f: is larger than 1 MiB, the most that is read"},
		{"nomad", "", "f: is of an unknown program: one of kms-agent, aws-agent, vault-agent, consul-template can be read"},
	} {
		_, err := convert.Config("f", []byte(c.src), options(c.from, noFile))
		if _, ok := errors.AsType[*convert.InputError](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.40q: %v, not %s", c.from, c.src, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s %.40q: the error quotes the file: %v", c.from, c.src, err)
		}
	}
}

// TestTemplateForms are the forms in which templates of others read secrets, and ours.
func TestTemplateForms(t *testing.T) {
	for src, want := range map[string]string{
		`{{ (secret "secret/data/a").Data.data.x }}`:                                                                                        `{{ (secretJSON "a").x }}`,
		`{{ with (secret "secret/data/a").Data.data }}{{ .x.y }}{{ end }}`:                                                                  `{{ with (secretJSON "a") }}{{ .x.y }}{{ end }}`,
		`{{ with "secret/data/a" | secret }}{{ with .Data.data }}{{ .x }}{{ end }}{{ end }}`:                                                `{{ with secretJSON "a" }}{{ with . }}{{ .x }}{{ end }}{{ end }}`,
		`{{with $s := secret "/secret/data/a" -}} {{$s.Data.data.x}}{{.Data.data.x}} {{- end}}`:                                             `{{with $s := secretJSON "a" -}} {{$s.x}}{{.x}} {{- end}}`,
		`{{ with secret "kv/a" }}{{ .Data.data.x }}{{ end }}`:                                                                               `{{ with secretJSON "a" }}{{ .x }}{{ end }}`,
		`{{ with secret "kv/a" }}{{ range $k, $v := .Data }}{{ $k }}{{ end }}{{ end }}`:                                                     `{{ with secretJSON "a" }}{{ range $k, $v := . }}{{ $k }}{{ end }}{{ end }}`,
		`{{ with secret "kv/data/a" }}{{ index .Data.data "x-y" }}{{ index .Data "data" "z" }}{{ end }}`:                                    `{{ with secretJSON "a" }}{{ index . "x-y" }}{{ index . "z" }}{{ end }}`,
		`{{ with secret "kv/data/a" }}{{ range .Data.data.l }}{{ .Data.data }}{{ end }}{{ else }}{{ .Data }}{{ end }}`:                      `{{ with secretJSON "a" }}{{ range .l }}{{ .Data.data }}{{ end }}{{ else }}{{ .Data }}{{ end }}`,
		`{{ with secret "kv/data/a" }}{{ if and .Data.data.x (not .Data.data.y.z) }}{{ end }}{{ end }}`:                                     `{{ with secretJSON "a" }}{{ if and (dig "x" "" .) (not (dig "y" "z" "" .)) }}{{ end }}{{ end }}`,
		`{{ with secret "kv/data/a" }}{{ or .Data.data.x "d" }}{{ end }}`:                                                                   `{{ with secretJSON "a" }}{{ or (dig "x" "" .) "d" }}{{ end }}`,
		`{{ with secret "kv/data/a?version=0" }}{{ .Data.data.x }}{{ end }}`:                                                                `{{ with secretJSON "a" }}{{ .x }}{{ end }}`,
		`{{ $p := "kv/data/a" }}{{ if .x }}{{ $p = "kv/data/b" }}{{ end }}{{ secret $p }}`:                                                  `{{ $p := "kv/data/a" }}{{ if .x }}{{ $p = "kv/data/b" }}{{ end }}{{ fail "secret of a computed path has no counterpart: write it as secretJSON (printf \"NAME/%s\" …), without the mount" }}`,
		`{{ $s := "" }}{{ with secret "kv/data/a" }}{{ $s = .Data.data }}{{ end }}{{ if $s.x }}{{ end }}`:                                   `{{ $s := "" }}{{ with secretJSON "a" }}{{ $s = . }}{{ end }}{{ if $s.x }}{{ end }}`,
		`{{ "{{ secret }}" }}{{/* {{ secret "x" }} */}}{{ ` + "`}}`" + ` | toUpper }}`:                                                      `{{ "{{ secret }}" }}{{/* {{ secret "x" }} */}}{{ ` + "`}}`" + ` | upper }}`,
		"{{ key\n  \"a\" |\n  toLower -}}\n x":                                                                                              "{{ secret \"a\" | lower -}}\n x",
		`{{ "x" | trim "y" }}{{ trimSpace "x" }}{{ "x" | contains "y" }}{{ in "l" "x" }}`:                                                   `{{ "x" | trimAll "y" }}{{ trim "x" }}{{ "x" | has "y" }}{{ has "x" "l" }}`,
		`{{ "x" | regexReplaceAll "a" "b" | toUpper }}{{ loop 2 }}{{ loop 1 2 }}{{ 7 | divide 2 }}`:                                         `{{ regexReplaceAll "a" "x" "b" | upper }}{{ until 2 }}{{ untilStep 1 2 1 }}{{ div 7 2 }}`,
		`{{ with secret "kv/data/a" }}{{ range $i, $u := .Data.data.users }}{{ if $u.admin }}{{ else if .x.y }}{{ end }}{{ end }}{{ end }}`: `{{ with secretJSON "a" }}{{ range $i, $u := .users }}{{ if dig "admin" "" $u }}{{ else if dig "x" "y" "" . }}{{ end }}{{ end }}{{ end }}`,
		`{{ with secret "kv/a" }}{{ with .Data.db }}{{ if .tls }}{{ .tls.ca }}{{ end }}{{ end }}{{ end }}`:                                  `{{ with secretJSON "a" }}{{ with dig "db" "" . }}{{ if dig "tls" "" . }}{{ .tls.ca }}{{ end }}{{ end }}{{ end }}`,
		`{{ with key "a" | parseJSON }}{{ if .x }}{{ .x }}{{ end }}{{ end }}`:                                                               `{{ with secret "a" | parseJSON }}{{ if dig "x" "" . }}{{ .x }}{{ end }}{{ end }}`,
		`nothing to do {{ .x }} {{ len "x" | printf "%d" }}`:                                                                                `nothing to do {{ .x }} {{ len "x" | printf "%d" }}`,
	} {
		got, _, err := convert.Template("f", []byte(src), "", "", options("consul-template", noFile))
		if err != nil || got != want {
			t.Errorf("%s becomes\n%s, %v\nnot\n%s", src, got, err, want)
		}
	}
}

// TestFunctions names every function of consul-template: each becomes one of ours, or says what to do.
func TestFunctions(t *testing.T) {
	for _, name := range strings.Fields(`
		secret key keyOrDefault keyExists env mustEnv envOrDefault
		service services node nodes datacenters connect caRoots caLeaf peerings partitions exportedServices
		nomadServices nomadService nomadVar nomadVarList nomadVarListSafe nomadVarExists
		ls safeLs tree safeTree secrets keyExistsGet byKey byTag byMeta byPort explode explodeMap
		file plugin timestamp scratch pkiCert writeToFile executeTemplate sockaddr
		base64Decode base64Encode base64URLDecode base64URLEncode contains containsAll containsAny containsNone containsNotAll
		in indent loop join trim trimLeft trimRight trimPrefix trimSuffix trimSpace parseBool parseFloat parseInt parseJSON parseUint
		parseYAML regexReplaceAll regexMatch replaceAll split splitToMap mergeMap mergeMapWithOverride
		toLower toJSON toJSONPretty toUnescapedJSON toUnescapedJSONPretty toTitle toTOML toUpper toYAML
		sha256Hex md5sum hmacSHA256Hex spew_dump spew_printf spew_sdump spew_sprintf
		add subtract multiply divide modulo minimum maximum
		sprig_upper sprig_quote sprig_default sprig_b64enc sprig_env sprig_now sprig_genCA`) {
		src := "{{ " + name + ` "a/b" "c" }}`
		out, notes, err := convert.Template("f", []byte(src), "", "", options("consul-template", noFile))
		must(t, err)
		called := strings.Fields(out)[1]
		switch {
		case !agent.HasTemplateFunction(called) && name != "envOrDefault":
			t.Errorf("%s becomes %s, which does not exist", src, out)
		case called == "fail" && len(notes) != 1:
			t.Errorf("%s becomes %s, with %d notes", src, out, len(notes))
		case called == "fail" && strings.Contains(notes[0].Reason, "do not have this function") && !strings.Contains(name, "_"):
			t.Errorf("%s: the note does not say what to do: %s", name, notes[0])
		}
	}
}
