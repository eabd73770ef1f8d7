package agent_test

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
)

// withCredentials is basic with secrets for services.
func withCredentials(socket, units string) string {
	return edited(basic, "secrets:\n", "  credentials:\n    socket: "+socket+"\n    units: "+units+"\nsecrets:\n")
}

// credential asks as systemd does. What is longer than 1 MiB fails the unit.
func (w *world) credential(socket, unit, name string) (value string, starts bool) {
	w.t.Helper()
	nc, err := net.DialUnix("unix", &net.UnixAddr{Name: "@5eca/unit/" + unit + "/" + name, Net: "unix"}, &net.UnixAddr{Name: w.path(socket), Net: "unix"})
	must(w.t, err)
	defer nc.Close()
	data, err := io.ReadAll(nc)
	must(w.t, err)
	return string(data), len(data) <= 1<<20
}

// TestUnitsGetCredentials goes through a life of the section: units and socket change while the
// agent runs, it goes, and comes back.
func TestUnitsGetCredentials(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gets credentials")
	}
	w := start(t, shortTempDir(t), withCredentials("./run/c.sock", `{app.service: ["demo/*"]}`))
	w.ready()
	const value = `{"username":"app","password":"` + marker + `"}`
	if info, err := os.Stat(w.path("run/c.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	want := func(socket, unit, name, value string) {
		t.Helper()
		got, starts := w.credential(socket, unit, name)
		if starts != (value != "") || starts && got != value {
			t.Errorf("%s, %s: %.40q, starts: %t; want %q", unit, name, got, starts, value)
		}
	}
	want("run/c.sock", "app.service", "db", value)
	want("run/c.sock", "web.service", "db", "")
	want("run/c.sock", "app.service", "none", "")

	status, _ := w.statusOf(w.token())
	listens, asked := false, false
	for _, l := range status.Listeners {
		listens = listens || l.Serves == "systemd" && l.Address == w.path("run/c.sock")
	}
	for _, s := range status.Secrets {
		asked = asked || s.SecretName == "demo/db" && s.AskedBy == "unit app.service"
	}
	if !listens || !asked {
		t.Errorf("the status does not tell: %t %t", listens, asked)
	}
	wantSeries(t, w.seriesFrom(map[string]float64{`secretagent_unit_credentials_failed_total{code="Forbidden.ResourceNotFound"}`: 1}), map[string]float64{
		`secretagent_unit_credentials_given_total{result="hit"}`:                       1,
		`secretagent_unit_credentials_refused_total{reason="unit"}`:                    1,
		`secretagent_unit_credentials_failed_total{code="Forbidden.ResourceNotFound"}`: 1,
		`secretagent_unit_credentials_connections_limit`:                               128,
	})

	must(t, w.reload(withCredentials("./run/c.sock", `{web.service: {x: "demo/db"}}`)))
	want("run/c.sock", "web.service", "x", value)
	want("run/c.sock", "app.service", "db", "")
	w.wantRefused(withCredentials("./run/c.sock", `{web.service: ["*/*"]}`), "endpoint.credentials.units.web.service[0]")
	w.wantRefused(withCredentials("./run/agent.sock", `{web.service: ["*"]}`), "endpoint.credentials.socket")
	want("run/c.sock", "web.service", "x", value)
	must(t, w.reload(withCredentials("./run/d.sock", `{web.service: {x: "demo/db"}}`)))
	want("run/d.sock", "web.service", "x", value)
	must(t, w.reload(basic))
	for _, gone := range []string{"run/c.sock", "run/d.sock"} {
		if _, err := os.Stat(w.path(gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	must(t, w.reload(withCredentials("./run/c.sock", `{app.service: ["demo/*"]}`)))
	want("run/c.sock", "app.service", "db", value)
	if log := w.log.String(); strings.Contains(log, marker) || !strings.Contains(log, "caller=web.service") {
		t.Errorf("log:\n%s", log)
	}
}
