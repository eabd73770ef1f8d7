// Package migrate holds configurations of other agents; this test converts them and runs what comes out.
package migrate

import (
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

const db = `{"username":"app","password":"s3cret"}`

// run runs the program in dir, with input, and returns what it printed on standard output.
func run(t *testing.T, bin, dir, input string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("secretagent %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// TestTemplates converts the two that render files, and holds the file and what the page shows.
func TestTemplates(t *testing.T) {
	bin := example.Build(t)
	page := example.Read(t, "README.md")
	for _, c := range []struct{ from, before, template, file, want string }{
		{"vault-agent", "vault-agent.hcl", "1-app.env.tmpl", "app.env", "DB_USER=app\nDB_PASSWORD=s3cret\n"},
		{"consul-template", "pgpass.ctmpl", "1-pgpass.tmpl", "pgpass", "db.internal:5432:*:app:s3cret\n"},
	} {
		t.Run(c.from, func(t *testing.T) {
			dir := example.Copy(t)
			run(t, bin, dir, "", "config", "convert", "--from", c.from, c.from+".hcl", "--env", "DB_HOST=db.internal", "--out", "new")
			conf := filepath.Join("new", "agent.yaml")
			run(t, bin, dir, "", "check", "--config", conf)
			run(t, bin, dir, db, "secret", "create", "app/db", "--data-file", "-", "--config", conf)
			run(t, bin, dir, "", "render", "--once", "--config", conf)
			if got := example.Read(t, filepath.Join(dir, "new", "out", c.file)); got != c.want {
				t.Errorf("%s is\n%s\nnot\n%s", c.file, got, c.want)
			}
			after := example.Read(t, filepath.Join(dir, "new", "templates", c.template))
			if !strings.Contains(page, "After:\n\n```\n"+after+"```\n") {
				t.Errorf("the page does not show what the template becomes:\n%s", after)
			}
			before := example.Read(t, c.before)
			if _, text, ok := strings.Cut(before, "<<EOF\n"); ok {
				before, _, _ = strings.Cut(text, "EOF\n")
			}
			if !strings.Contains(page, "["+c.before+"]("+c.before+"):\n\n```\n"+before+"```\n") {
				t.Errorf("the page does not show the template of %s:\n%s", c.before, before)
			}
		})
	}
}

// TestAWSAgent runs the converted configuration and asks as an application of the AWS agent does.
func TestAWSAgent(t *testing.T) {
	address := freeAddress(t)
	a := example.Start(t, func(dir string) {
		bin := example.Build(t)
		text := run(t, bin, dir, "", "config", "convert", "--from", "aws-agent", "aws-agent.toml")
		if !strings.Contains(text, `listen: "127.0.0.1:2773"`) {
			t.Errorf("the port of the AWS agent is lost:\n%s", text)
		}
		example.Write(t, filepath.Join(dir, "agent.yaml"), strings.Replace(text, "127.0.0.1:2773", address, 1))
	})
	a.Create(t, "app/db", db)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/secretsmanager/get?secretId=app/db", nil)
	example.Must(t, err)
	token := strings.TrimSpace(example.Read(t, a.Path("var", "run", "token")))
	req.Header.Set("X-Aws-Parameters-Secrets-Token", token)
	resp, err := http.DefaultClient.Do(req)
	example.Must(t, err)
	defer resp.Body.Close()
	body := new(strings.Builder)
	example.Must(t, resp.Write(body))
	if resp.StatusCode != http.StatusOK || !strings.Contains(body.String(), `"SecretString":"{\"username\":\"app\"`) {
		t.Errorf("the answer is\n%s", body)
	}
}

// TestKMSAgent checks what the configuration of Alibaba's agent becomes; its upstream is the cloud.
func TestKMSAgent(t *testing.T) {
	bin, dir := example.Build(t), example.Copy(t)
	text := run(t, bin, dir, "", "config", "convert", "--from", "kms-agent", "kms-agent.toml")
	example.Write(t, filepath.Join(dir, "agent.yaml"), text)
	run(t, bin, dir, "", "check", "--config", "agent.yaml")
	for _, want := range []string{"region: cn-hangzhou\n", "host: kms-vpc.cn-hangzhou.aliyuncs.com\n", "maxConnections: 400\n", "format: kms\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}

// freeAddress returns an address on which nobody listened a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	example.Must(t, err)
	defer l.Close()
	return l.Addr().String()
}
