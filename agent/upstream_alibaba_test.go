package agent

import (
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"secretagent/agent/config"
)

func TestNewAuthoritiesMakeANewClient(t *testing.T) {
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	dir := t.TempDir()
	write := func(name string, text []byte) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	write("ca.pem", ca)
	write("id", []byte("agent\n"))
	write("secret", []byte("0123456789abcdef0123456789abcdef\n"))
	const text = `upstream: {alibaba: {endpoints: [{region: cn-hangzhou, caFile: ca.pem}], credentials: {type: access_key, accessKeyIdFile: id, accessKeySecretFile: secret}}}`
	cfg, err := config.Parse(filepath.Join(dir, "agent.yaml"), []byte(text))
	must(t, err)
	opened, err := kindOf(&cfg.Upstream).open(t.Context(), slog.New(slog.DiscardHandler), nil)
	must(t, err)
	defer opened.Close()
	b := opened.(*alibabaBackend)
	reload := func() (fresh bool) {
		t.Helper()
		before := b.current.Load()
		commit, err := b.prepare(t.Context(), &cfg.Upstream)
		must(t, err)
		commit()
		return b.current.Load() != before
	}
	if reload() {
		t.Error("a client was made although nothing has changed")
	}
	write("ca.pem", append(ca, ca...))
	if !reload() {
		t.Error("the client goes on with the old authorities")
	}
	write("ca.pem", []byte("nothing\n"))
	if _, err := b.prepare(t.Context(), &cfg.Upstream); err == nil {
		t.Error("a file without a certificate was taken")
	}
}
