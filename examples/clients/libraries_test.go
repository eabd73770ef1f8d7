package clients

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"secretagent/agent/command"
	"secretagent/examples/internal/example"
)

var update = flag.Bool("update", false, "write what the clients print into the table of README.md")

// TestLibraries runs applications of three families on one agent, each through the libraries that
// it is written with, and holds the table of README.md against what they say.
func TestLibraries(t *testing.T) {
	if testing.Short() {
		t.Skip("the clients of four languages take seconds")
	}
	dir := t.TempDir()
	text := strings.Replace(example.Read(t, "agent.yaml"), "127.0.0.1:2025", "127.0.0.1:0", 1)
	a, _ := example.Within(t, dir, text+"process: {noDump: false}\n")
	for _, put := range [][]string{
		{"put", "demo/db", "--version-id", "v2", "--data", `{"username":"app","password":"second"}`},
		{"create", "demo/staging", "--version-id", "v1", "--data", `{"data":{"PASSWORD":"of staging"}}`},
		{"create", "demo/text", "--version-id", "v1", "--data", "no JSON"},
		{"create", "demo/a@b+c=d", "--version-id", "v1", "--data", `{"password":"of an odd name"}`},
		{"create", "demo/key", "--version-id", "v1", "--data-type", "binary", "--data", "AAEC"},
		{"create", "other/db", "--version-id", "v1", "--data", "of another application"},
	} {
		secret(t, dir, put...)
	}

	token := filepath.Join(dir, "var", "token")
	address := a.Addrs()[0].String()
	_, port, _ := strings.Cut(address, ":")
	env := []string{
		"AGENT=http://" + address, "KMS_TOKEN=file://" + token, "AWS_TOKEN=file://" + token,
		"VAULT_ADDR=http://" + address, "VAULT_TOKEN=" + strings.TrimSpace(example.Read(t, token)),
		"PARAMETERS_SECRETS_EXTENSION_HTTP_PORT=" + port, "AWS_SESSION_TOKEN=" + strings.TrimSpace(example.Read(t, token)),
		"NO_PROXY=*", "no_proxy=*", "GOPROXY=off",
	}
	report(t, env, address, []client{
		{"python", ".", []string{"python3", "-c", "import hvac, dynaconf"}, []string{"python3", "python.py"}},
		{"node", ".", []string{"node", "-e", `require("node-vault")`}, []string{"node", "node.cjs"}},
		{"java", ".", []string{"javap", "io.github.jopenlibs.vault.Vault", "org.springframework.vault.core.VaultTemplate"}, []string{"java", "Java.java"}},
		{"go", "go", []string{"go", "build", "-o", os.DevNull, ".", "github.com/hashicorp/consul-template"}, []string{"go", "run", "."}},
		{"curl", ".", []string{"curl", "--version"}, []string{"sh", "curl.sh"}},
	})
}

// client is a program in libraries.
type client struct {
	name  string
	dir   string
	probe []string // fails where the libraries are not installed
	run   []string
}

// report runs clients and holds what they print against their tables in README.md.
func report(t *testing.T, env []string, address string, clients []client) {
	t.Helper()
	readme := example.Read(t, "README.md")
	for _, client := range clients {
		t.Run(client.name, func(t *testing.T) {
			in := filepath.Join("libraries", client.dir)
			example.Tool(t, client.run[0])
			example.Tool(t, client.probe[0])
			if out, code := example.Output(t, in, env, client.probe...); code != 0 {
				t.Skipf("needs libraries that are not installed: %s", out)
			}
			out, code := example.Output(t, in, env, client.run...)
			if code != 0 {
				t.Fatalf("exit code %d:\n%s", code, out)
			}
			got := table(out, address)
			if *update {
				readme = replaceTable(t, readme, client.name, got)
			} else if !strings.Contains(readme, got) {
				t.Errorf("README.md has another table; after a look, go test -run %s -update. The clients print\n%s", t.Name(), got)
			}
		})
	}
	if *update {
		example.Must(t, os.WriteFile("README.md", []byte(readme), 0o644))
	}
}

// What differs from run to run.
var (
	uuid   = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	moment = regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	second = regexp.MustCompile(`"CreatedDate":"\d{10}(\.\d+)?"`)
)

// table makes a table of the lines that a program prints.
func table(out, address string) string {
	var b strings.Builder
	b.WriteString("| client | operation | result |\n|---|---|---|\n")
	for line := range strings.Lines(out) {
		cells := strings.SplitN(strings.TrimRight(line, "\r\n"), " | ", 3)
		result := strings.NewReplacer("http://"+address, "http://AGENT", "`", "'", "|", "\\|").Replace(cells[len(cells)-1])
		result = moment.ReplaceAllString(uuid.ReplaceAllString(result, "ID"), "TIME")
		if result = second.ReplaceAllString(result, `"CreatedDate":"SECONDS"`); result != "" {
			result = "`" + result + "`"
		}
		cells[len(cells)-1] = result
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	return b.String()
}

// replaceTable puts the table of a program behind its mark.
func replaceTable(t *testing.T, readme, name, table string) string {
	before, rest, marked := strings.Cut(readme, "<!-- "+name+" -->\n")
	_, after, ends := strings.Cut(rest, "<!-- end -->\n")
	if !marked || !ends {
		t.Fatalf("README.md has no place for the table of %s", name)
	}
	return before + "<!-- " + name + " -->\n" + table + "<!-- end -->\n" + after
}

// secret runs "secretagent secret" with the configuration in dir.
func secret(t *testing.T, dir string, args ...string) {
	t.Helper()
	var out example.Buffer
	args = append(append([]string{"secret"}, args...), "--config", filepath.Join(dir, "agent.yaml"))
	code := command.Main(t.Context(), command.Process{
		Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out,
		Getenv: func(string) string { return "" },
	})
	if code != 0 {
		t.Fatalf("%s: %s", args, out.String())
	}
}
