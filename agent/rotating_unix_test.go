//go:build unix

package agent_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream/upstreamtest"
)

// TestRotation lets an agent rotate, over a reload and a step that fails.
func TestRotation(t *testing.T) {
	t.Parallel() // it waits
	dir := shortTempDir(t)
	text := basic + `rotations:
  - secret: demo/db
    every: 1s
    new: {password: {field: password, length: 40}}
    set: {command: [/bin/sh, -c, 'cat > in.json; cat in.json']}
    test: {command: [/bin/sh, -c, 'cat; test -e ok || { echo "no login"; exit 3; }']}
    maxAttempts: 1
`
	text = strings.ReplaceAll(strings.ReplaceAll(text, "in.json", dir+"/in.json"), "-e ok", "-e "+dir+"/ok")
	w := start(t, dir, text)
	w.ready()
	state := func() agent.RotationStatus {
		var s agent.Status
		_, body := w.get("/status")
		must(t, json.Unmarshal([]byte(body), &s))
		if len(s.Rotations) != 1 {
			t.Fatalf("rotations in the status: %+v", s.Rotations)
		}
		return s.Rotations[0]
	}
	w.eventually("a failure", func() bool { return state().State == agent.RotationFailed })
	failed := state()
	if failed.Step != "test" || !strings.HasPrefix(failed.Error, "command /bin/sh: exit status 3: ") || !strings.Contains(failed.Error, "[masked]") || failed.Current != "v1" || failed.Pending == "" {
		t.Errorf("the status says %+v", failed)
	}
	wantSeries(t, w.series(), map[string]float64{
		`secretagent_rotation_failing{secret="demo/db"}`:                  1,
		`secretagent_rotation_pending{secret="demo/db"}`:                  1,
		`secretagent_rotations_total{outcome="failed",secret="demo/db"}`:  1,
		`secretagent_rotations_total{outcome="rotated",secret="demo/db"}`: 0,
		`secretagent_secret_available{secret="demo/db:ACSCurrent"}`:       1,
	})
	if got := w.rendered(); got != "PASSWORD="+marker {
		t.Errorf("the file is %q", got)
	}

	// A reload takes it up again.
	write(t, dir, map[string]string{"ok": "", "agent.yaml": strings.Replace(text, "maxAttempts: 1", "maxAttempts: 2", 1)})
	must(t, w.agent.Reload(t.Context()))
	w.eventually("a rotation", func() bool { return w.series()[`secretagent_rotations_total{outcome="rotated",secret="demo/db"}`] > 0 })
	w.eventually("the new password in the file", func() bool { return w.rendered() != "PASSWORD="+marker })
	in, err := os.ReadFile(dir + "/in.json")
	must(t, err)
	var got struct{ Pending, Current struct{ SecretData string } }
	must(t, json.Unmarshal(in, &got))
	for _, value := range []string{got.Pending.SecretData, got.Current.SecretData} {
		var fields struct{ Password string }
		must(t, json.Unmarshal([]byte(value), &fields))
		if strings.Contains(w.log.String(), fields.Password) {
			t.Error("the log has a password")
		}
	}
	for _, line := range []string{"a rotation has failed", "a new version is pending", "the secret was rotated"} {
		if !strings.Contains(w.log.String(), line) {
			t.Errorf("the log does not say: %s", line)
		}
	}
}

// TestRotationInTheCloud lets an agent rotate over the KMS API, whose answers are lost now and then, with
// the rights of examples/alibaba, and asks what rights there are.
func TestRotationInTheCloud(t *testing.T) {
	t.Parallel() // it waits
	far := start(t, shortTempDir(t), `
endpoint: {listen: off, socket: ./run/agent.sock}
process: {noDump: false}
upstream:
  local:
    api:
      listen: 127.0.0.1:0
      accessKeys:
        - {id: reads, secretFile: ./reads.secret, actions: [GetSecretValue], secrets: ["app/*"]}
        - {id: rotates, secretFile: ./rotates.secret, actions: [GetSecretValue, ListSecretVersionIds, PutSecretValue, UpdateSecretVersionStage], secrets: ["app/*"]}
    seed:
      - {name: app/db, versionId: v1, data: '{"password":"first"}'}
`)
	network := upstreamtest.NewFaulty(t, far.agent.APIAddrs()[1].String())
	text := func(key, rotations string) string {
		text := cloudConfig(network.Addr(), far.path(key+".secret")) + rotations
		return strings.Replace(text, "accessKeyIdFile: ./id", "accessKeyIdFile: ./"+key, 1)
	}
	const rotations = "rotations: [{secret: app/db, every: 1s, new: {password: {field: password}}, test: {command: [cat]}}]\n"

	dir := shortTempDir(t)
	write(t, dir, map[string]string{"reads": "reads\n", "rotates": "rotates\n"})
	for _, c := range []struct{ key, rotations, denied, warning string }{
		{"reads", "", "", ""},
		{"rotates", "", "", "may also write"},
		{"rotates", rotations, "", ""},
		{"reads", rotations, "ListSecretVersionIds app/db", ""},
	} {
		write(t, dir, map[string]string{"probe.yaml": text(c.key, c.rotations)})
		cfg, err := config.Load(dir+"/probe.yaml", agent.Check)
		must(t, err)
		results, err := agent.Probe(t.Context(), cfg, nil)
		must(t, err)
		denied, warning := "", ""
		for _, r := range results {
			warning += r.Warning
			if r.Err != nil {
				denied += r.Err.Error()
			}
		}
		if !strings.Contains(denied, c.denied) || (denied == "") != (c.denied == "") || !strings.Contains(warning, c.warning) || (warning == "") != (c.warning == "") {
			t.Errorf("key %s, %q: denied %q, warning %q", c.key, c.rotations, denied, warning)
		}
	}

	network.Next(upstreamtest.Fault{}, upstreamtest.Fault{}, upstreamtest.Fault{}, upstreamtest.LostAnswer, upstreamtest.Fault{}, upstreamtest.LostAnswer, upstreamtest.Unavailable)
	w := start(t, dir, text("rotates", rotations))
	w.eventually("the new value", func() bool {
		_, data := w.lookup("/v1/app/db")
		return !strings.Contains(data, "first")
	})
}
