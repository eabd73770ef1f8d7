package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// templates renders templates once with consul-template, which takes VAULT_ADDR and VAULT_TOKEN.
func templates() {
	for _, t := range []struct{ operation, text string }{
		{"read", `{{ with secret "secret/data/demo/db" }}{{ .Data.data.password }}{{ end }}`},
		{"read, the short path", `{{ with secret "secret/demo/db" }}{{ .Data.data.password }}{{ end }}`},
		{"read text", `{{ with secret "secret/data/demo/text" }}{{ .Data.data.value }}{{ end }}`},
		{"old version", `{{ with secret "secret/data/demo/db?version=1" }}{{ .Data.data.password }}{{ end }}`},
		{"missing", `{{ with secret "secret/data/demo/none" }}{{ .Data.data.password }}{{ end }}`},
		{"missing, the short path", `{{ with secret "secret/demo/none" }}{{ .Data.data.password }}{{ end }}`},
		{"denied", `{{ with secret "secret/data/other/db" }}{{ .Data.data.password }}{{ end }}`},
		{"list", `{{ range secrets "secret/metadata/demo" }}{{ . }} {{ end }}`},
		{"read, KV version 1", `{{ with secret "kv/demo/db" }}{{ .Data.password }}{{ end }}`},
		{"other mount", `{{ with secret "none/demo/db" }}{{ .Data.data.password }}{{ end }}`},
	} {
		step("consul-template", t.operation, func() (any, error) { return render(t.text) })
	}
}

// logged is the beginning of the line that says why consul-template ends.
var logged = regexp.MustCompile(`(?m)^\S+ \[ERR\] \(cli\) (.*)$`)

func render(text string) (any, error) {
	dir, err := os.MkdirTemp("", "template")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	source, file := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var log bytes.Buffer
	cmd := exec.Command("go", "tool", "consul-template", "-once", "-vault-retry=false", "-template", source+":"+file)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Run(); err != nil {
		if line := logged.FindStringSubmatch(log.String()); line != nil {
			return nil, errors.New(line[1] + " " + strings.SplitN(log.String()[strings.Index(log.String(), line[0])+len(line[0]):], "\n20", 2)[0])
		}
		return nil, errors.New(log.String())
	}
	out, err := os.ReadFile(file)
	return string(out), err
}
