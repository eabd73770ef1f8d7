package agent_test

import (
	"strings"
	"testing"
)

// TestMountsOfVaultAreLive holds that an application of Vault finds a mount as soon as the
// configuration has it, with the versions that the built-in backend knows and the names that are
// declared, and that the mount goes with it.
func TestMountsOfVaultAreLive(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	w.put("demo/db", "v2", `{"username":"app","password":"second"}`)
	w.eventually("the new version", func() bool { v, _ := w.lookup("/v1/demo/db"); return v == "v2" })
	if status, _ := w.get("/v1/secret/data/demo/db"); status != 404 {
		t.Errorf("without a mount: %d", status)
	}
	mounted := edited(basic, "endpoint:\n", "endpoint:\n  vaultMounts: [secret]\n")
	must(t, w.reload(mounted))
	for path, want := range map[string]string{
		"/v1/secret/data/demo/db":                   `"data":{"username":"app","password":"second"},"metadata":{"created_time":"`,
		"/v1/secret/data/demo/db?version=1":         `"data":{"username":"app","password":"` + marker + `"}`,
		"/v1/secret/metadata/demo/db":               `"current_version":2,`,
		"/v1/secret/metadata?list=true":             `"data":{"keys":["demo/"]}`,
		"/v1/sys/internal/ui/mounts/secret/demo/db": `"options":{"version":"2"}`,
	} {
		if status, body := w.get(path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want %s", path, status, body, want)
		}
	}
	w.wantRefused(edited(mounted, "vaultMounts: [secret]", "vaultMounts: [auth]"), "endpoint.vaultMounts[0]")
	if status, _ := w.get("/v1/secret/data/demo/db"); status != 200 {
		t.Errorf("after a reload that was refused: %d", status)
	}
	must(t, w.reload(basic))
	if status, _ := w.get("/v1/secret/data/demo/db"); status != 404 {
		t.Errorf("after the mount was taken away: %d", status)
	}
}
