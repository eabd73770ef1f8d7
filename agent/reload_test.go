package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// reconfigure replaces the configuration file as an editor does, by renaming.
func (w *world) reconfigure(text string) {
	w.t.Helper()
	write(w.t, w.dir, map[string]string{"agent.yaml.next": text})
	must(w.t, os.Rename(w.path("agent.yaml.next"), w.path("agent.yaml")))
}

// reload reloads text.
func (w *world) reload(text string) error {
	w.t.Helper()
	w.reconfigure(text)
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	return w.agent.Reload(ctx)
}

// wantRefused reloads text, which must fail with an error that contains want and no value.
func (w *world) wantRefused(text, want string) {
	w.t.Helper()
	if err := w.reload(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), marker) {
		w.t.Errorf("want an error with %q: %v", want, err)
	}
}

func TestReloadChangesWhatIsRendered(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	must(t, w.reload(edited(basic, "'PASSWORD=", "'NEW=")))
	w.eventually("the new template", func() bool { return w.rendered() == "NEW="+marker })
	w.put("demo/db", "v2", `{"password":"second"}`)
	w.eventually("the new renderer follows changes", func() bool { return w.rendered() == "NEW=second" })
}

func TestReloadChangesTheLogLevel(t *testing.T) {
	w := start(t, shortTempDir(t), edited(basic, "level: debug", "level: warn"))
	w.ready()
	w.lookup("/v1/demo/db?refreshNow=true")
	if log := w.log.String(); strings.Contains(log, "DBG") || strings.Contains(log, "INF") {
		t.Errorf("at warn:\n%s", log)
	}
	must(t, w.reload(basic))
	w.lookup("/v1/demo/db?refreshNow=true")
	w.eventually("a line of detail", func() bool { return strings.Contains(w.log.String(), "DBG the upstream was asked") })
}

func TestReloadOfABadFileChangesNothing(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	for want, text := range map[string]string{
		"agent.yaml":                            "upstream: [",
		"chache":                                basic + "chache: {}\n",
		"nope":                                  edited(basic, "'PASSWORD={{", "'PASSWORD={{ nope "),
		"endpoint.maxConnections cannot change": edited(basic, "  listen:", "  maxConnections: 5\n  listen:"),
		"upstream.local.database cannot change": edited(basic, "data/secrets.db", "data/other.db"),
	} {
		w.wantRefused(text, want)
		if status, body := w.get("/ready"); status != http.StatusOK || !strings.Contains(body, "not reloaded") {
			t.Errorf("%s: /ready says %d %s", want, status, body)
		}
		w.put("demo/db", upstream.VersionID(strings.ReplaceAll(want, " ", "-")), `{"password":"`+want+`"}`)
		w.eventually("still rendered after "+want, func() bool { return w.rendered() == "PASSWORD="+want })
	}
	must(t, w.reload(basic))
	if _, body := w.get("/ready"); strings.Contains(body, "not reloaded") {
		t.Errorf("/ready still says %s", body)
	}
}

func TestReloadMovesTheListener(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	before := w.url
	must(t, w.reload(edited(basic, "127.0.0.1:0", "localhost:0")))
	w.url = "http://" + w.agent.Addrs()[0].String()
	if w.url == before {
		t.Fatal("the listener did not move")
	}
	if version, _ := w.lookup("/v1/demo/db"); version != "v1" {
		t.Errorf("the new listener gave %s", version)
	}
	w.client.CloseIdleConnections()
	if _, err := w.try(http.MethodGet, before+"/live", nil); err == nil {
		t.Error("the old listener still accepts")
	}
}

func TestChangedTokenFileIsPickedUpAndTheOldOneOverlaps(t *testing.T) {
	t.Parallel() // it waits
	withGrace := func(grace string) string {
		return edited(basic, "tokenFile: ./run/token", "tokenFile: ./run/token\n  tokenGrace: "+grace)
	}
	w := start(t, shortTempDir(t), withGrace("1h"))
	w.ready()
	old, next, last := w.token(), strings.Repeat("n", 40), strings.Repeat("l", 40)
	with := func(token string) int { return w.ask("/v1/demo/db", token).StatusCode }
	write(t, w.dir, map[string]string{"run/token": next + "\n"})
	w.eventually("the new token works", func() bool { return with(next) == http.StatusOK })
	if status := with(old); status != http.StatusOK {
		t.Errorf("the old token is refused at once: %d", status)
	}
	w.reconfigure(withGrace("0s"))
	write(t, w.dir, map[string]string{"run/token": last + "\n"})
	w.eventually("the last token works", func() bool { return with(last) == http.StatusOK })
	w.eventually("without grace the token before it ends", func() bool { return with(next) == http.StatusForbidden })
}

func TestKubernetesStyleSwapOfTheConfigurationReloads(t *testing.T) {
	t.Parallel() // it waits
	dir := shortTempDir(t)
	publish := func(generation, text string) {
		t.Helper()
		folder := filepath.Join(dir, ".."+generation)
		must(t, os.Mkdir(folder, 0o700))
		write(t, folder, map[string]string{"app.tmpl": text})
		must(t, os.Symlink(".."+generation, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("1", "ONE")
	must(t, os.Symlink("..data/app.tmpl", filepath.Join(dir, "app.tmpl")))
	w := start(t, dir, edited(basic, "contents: 'PASSWORD={{ (secretJSON \"demo/db\").password }}'", "source: ./app.tmpl"))
	w.ready()
	publish("2", "TWO")
	w.eventually("the new template is in use", func() bool { return w.rendered() == "TWO" })
}

// TestNoLookupFailsDuringReloads reloads while clients ask.
func TestNoLookupFailsDuringReloads(t *testing.T) {
	reloads := 100
	if testing.Short() {
		reloads = 20
	}
	w := start(t, shortTempDir(t), basic)
	w.ready()
	token := w.token()
	var stop atomic.Bool
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				got, err := w.try(http.MethodGet, w.url+"/v1/demo/db", nil, "X-KMS-Token", token)
				if err != nil || got.StatusCode != http.StatusOK {
					t.Errorf("a lookup failed: %v %s", err, got.body)
					return
				}
			}
		})
	}
	var err error
	for i := 0; i < reloads && err == nil; i++ {
		err = w.reload(edited(basic, "'PASSWORD=", fmt.Sprintf("'P%d=", i)) + fmt.Sprintf("cache: {ttl: %ds, maxEntries: %d}\n", 60+i, 100+i))
	}
	stop.Store(true)
	clients.Wait()
	must(t, err)
	w.eventually("the last template", func() bool { return w.rendered() == fmt.Sprintf("P%d=%s", reloads-1, marker) })
}

// TestReloadThatFailsAtALaterStepChangesNothing refuses a reload because of an address that is
// taken, which only shows when it is listened on.
func TestReloadThatFailsAtALaterStepChangesNothing(t *testing.T) {
	w := start(t, shortTempDir(t), withKeys("id: one, secretFile: ./one.secret"))
	w.ready()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	write(t, w.dir, map[string]string{"two.secret": strings.Repeat("t", 40)})
	w.wantRefused(edited(withKeys("id: two, secretFile: ./two.secret"),
		"  listen: 127.0.0.1:0\n", "  listen: "+taken.Addr().String()+"\n",
		"  tokenFile: ./run/token\n", "  callers: [{name: a, tokenFile: ./a.token, secrets: [x]}]\n",
		"demo/db, versionId: v1", "demo/new, versionId: v1"), "endpoint.listen")
	if version, _ := w.lookup("/v1/demo/db"); version != "v1" {
		t.Errorf("the token of before gave %s", version)
	}
	if status, _ := w.get("/v1/demo/new"); status != http.StatusNotFound {
		t.Errorf("the refused reload left its seed behind: %d", status)
	}
	// The access key of before still signs, the one of the refused file does not.
	for id, want := range map[string]error{"one": nil, "two": upstream.ErrUnauthenticated} {
		client, err := kms.New(kms.Options{
			Endpoints:   []kms.Endpoint{{Host: w.agent.APIAddrs()[1].String(), Scheme: "http"}},
			Credentials: kms.StaticCredential(id, w.read(id+".secret"), ""),
		})
		must(t, err)
		if _, err = client.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "demo/db"}); !errors.Is(err, want) {
			t.Errorf("access key %s: %v", id, err)
		}
		client.Close()
	}
}

// TestASecretFileOfNoUseShutsOutItsAccessKeyAlone: the rest of a reload applies, and a restart starts.
func TestASecretFileOfNoUseShutsOutItsAccessKeyAlone(t *testing.T) {
	text := edited(withKeys("id: one, secretFile: ./one.secret"), "accessKeys: [", `accessKeys: [{id: two, secretFile: ./two.secret, actions: ["*"], secrets: ["*"]}, `)
	w := start(t, shortTempDir(t), text)
	secrets := map[string]string{"one": w.read("one.secret"), "two": w.read("two.secret")}
	wants := func(when string, want map[string]error) {
		t.Helper()
		for id, want := range want {
			client, err := kms.New(kms.Options{
				Endpoints:   []kms.Endpoint{{Host: w.agent.APIAddrs()[1].String(), Scheme: "http"}},
				Credentials: kms.StaticCredential(id, secrets[id], ""),
			})
			must(t, err)
			if _, err = client.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "demo/db"}); !errors.Is(err, want) {
				t.Errorf("%s: access key %s: %v", when, id, err)
			}
			client.Close()
		}
	}
	told := func(when string) {
		t.Helper()
		token := w.read("run/token")
		w.eventually(when+": told by /ready", func() bool {
			got := w.ask("/ready", token)
			return got.StatusCode == http.StatusOK && strings.Contains(got.body, "access key two, shut out") && strings.Contains(got.body, "is empty")
		})
		series, _ := agent.ParseSeries(w.ask("/metrics", token).body)
		wantSeries(t, series, map[string]float64{`secretagent_kms_api_access_key_shut_out{access_key="two"}`: 1, `secretagent_kms_api_access_key_shut_out{access_key="one"}`: 0})
		w.eventually("a line in the log", func() bool { return strings.Contains(w.log.String(), "ERR an access key is shut out") })
	}
	onlyOne := map[string]error{"one": nil, "two": upstream.ErrUnauthenticated}
	wants("before", map[string]error{"one": nil, "two": nil})
	write(t, w.dir, map[string]string{"two.secret": " \n"})
	must(t, w.reload(text))
	wants("after the reload", onlyOne)
	told("after the reload")
	if _, err := config.Load(w.path("agent.yaml"), agent.Check); err != nil {
		t.Errorf("the check refuses what runs: %v", err)
	}
	if _, err := config.Load(w.path("agent.yaml"), agent.Warnings); err == nil || !strings.Contains(err.Error(), "upstream.local.api.accessKeys[0].secretFile") {
		t.Errorf("the check does not warn: %v", err)
	}
	must(t, w.stop())
	w = start(t, w.dir, text)
	wants("after a restart", onlyOne)
	told("after a restart")
	write(t, w.dir, map[string]string{"two.secret": secrets["two"]})
	w.eventually("the key is back", func() bool {
		series, _ := agent.ParseSeries(w.ask("/metrics", w.read("run/token")).body)
		return series[`secretagent_kms_api_access_key_shut_out{access_key="two"}`] == 0
	})
	wants("repaired", map[string]error{"one": nil, "two": nil})
}

// TestReloadThatFailsShowsNothingOfIt refuses a reload because of an access key, and looks at
// what the callers of the refused file would have ended: the session of a browser.
func TestReloadThatFailsShowsNothingOfIt(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	var err error
	w.client.Jar, err = cookiejar.New(nil)
	must(t, err)
	see := func(url string) int {
		t.Helper()
		got, err := w.try(http.MethodGet, url, nil)
		must(t, err)
		return got.StatusCode
	}
	if status := see(w.link()); status != http.StatusOK {
		t.Fatalf("the link: %d", status)
	}
	write(t, w.dir, map[string]string{"a.token": strings.Repeat("t", 40)})
	w.wantRefused(edited(withKeys(`id: "o n e", secretFile: ./one.secret`),
		"  tokenFile: ./run/token\n", "  callers: [{name: a, tokenFile: ./a.token, secrets: [x]}]\n"), "accessKeys[0].id")
	if status := see(w.url + "/status"); status != http.StatusOK {
		t.Errorf("the session of a browser ended with a reload that failed: %d", status)
	}
}

// TestABusyNeighbourDoesNotHideAChange writes another file of the same folder all the time, as
// a log does.
func TestABusyNeighbourDoesNotHideAChange(t *testing.T) {
	t.Parallel() // it waits
	w := start(t, shortTempDir(t), basic)
	w.ready()
	stop := make(chan struct{})
	var writer sync.WaitGroup
	defer writer.Wait()
	defer close(stop)
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				_ = os.WriteFile(w.path("busy.log"), []byte(time.Now().String()), 0o600)
			}
		}
	})
	w.reconfigure(edited(basic, "'PASSWORD=", "'NEW="))
	w.eventually("the change is seen", func() bool { return w.rendered() == "NEW="+marker })
}

// TestDeletedSeedStaysDeleted deletes a seeded secret by force. Neither a reload of the same
// configuration nor a restart brings it back; a seed that a reload adds waits for the restart.
func TestDeletedSeedStaysDeleted(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		_, err := m.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "demo/db", ForceDeleteWithoutRecovery: true})
		return err
	})
	names := func() (all string) {
		w.manage(func(ctx context.Context, m upstream.Manager) error {
			list, err := m.ListSecrets(ctx, upstream.ListSecretsInput{})
			for _, s := range list.Secrets {
				all += string(s.SecretName) + " "
			}
			return err
		})
		return all
	}
	before := names()
	next := edited(basic, "seed:\n", "seed:\n      - {name: demo/late, data: x}\n")
	must(t, w.reload(next+"\n"))
	if got := names(); got != before || strings.Contains(got, "demo/db ") {
		t.Errorf("a reload left %q of %q", got, before)
	}
	w.eventually("a word on the seed that waits", func() bool { return strings.Contains(w.log.String(), "not seeded: the next start does it") })
	w.stop()
	w = start(t, w.dir, next)
	if got := names(); strings.Contains(got, "demo/db ") || !strings.Contains(got, "demo/late ") {
		t.Errorf("after a restart there are %q", got)
	}
}
