package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// reconfigure replaces the configuration file as an editor does, by renaming.
func (w *world) reconfigure(text string) {
	w.t.Helper()
	next := w.path("agent.yaml.next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(next, w.path("agent.yaml")); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reload() error {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	return w.agent.Reload(ctx)
}

func TestReloadChangesWhatIsRendered(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	w.reconfigure(strings.Replace(basic, "'PASSWORD=", "'NEW=", 1))
	if err := w.reload(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the new template", func() bool { return w.rendered() == "NEW="+marker })
	w.put("demo/db", "v2", `{"password":"second"}`)
	w.eventually("the new renderer follows changes", func() bool { return w.rendered() == "NEW=second" })
}

func TestReloadChangesTheLogLevel(t *testing.T) {
	w := start(t, shortTempDir(t), strings.Replace(basic, "level: debug", "level: warn", 1))
	w.ready()
	w.lookup("/v1/demo/db?refreshNow=true")
	if log := w.log.String(); strings.Contains(log, "DBG") || strings.Contains(log, "INF") {
		t.Errorf("at warn:\n%s", log)
	}
	w.reconfigure(basic)
	if err := w.reload(); err != nil {
		t.Fatal(err)
	}
	w.lookup("/v1/demo/db?refreshNow=true")
	w.eventually("a line of detail", func() bool { return strings.Contains(w.log.String(), "DBG the upstream was asked") })
}

func TestReloadOfABadFileChangesNothing(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	for name, c := range map[string]struct{ text, want string }{
		"syntax":            {"upstream: [", "agent.yaml"},
		"unknown key":       {basic + "chache: {}\n", "chache"},
		"template":          {strings.Replace(basic, "'PASSWORD={{", "'PASSWORD={{ nope ", 1), "nope"},
		"only by a restart": {strings.Replace(basic, "  listen:", "  maxConnections: 5\n  listen:", 1), "endpoint.maxConnections cannot change"},
		"another database":  {strings.Replace(basic, "data/secrets.db", "data/other.db", 1), "upstream.local.database cannot change"},
	} {
		w.reconfigure(c.text)
		if err := w.reload(); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), marker) {
			t.Errorf("%s: %v", name, err)
		}
		if status, body := w.get("/ready"); status != http.StatusOK || !strings.Contains(body, "not reloaded") {
			t.Errorf("%s: /ready says %d %s", name, status, body)
		}
		w.put("demo/db", upstream.VersionID("v-"+versionOf(name)), `{"password":"`+name+`"}`)
		w.eventually("still rendered after "+name, func() bool { return w.rendered() == "PASSWORD="+name })
	}
	w.reconfigure(basic)
	if err := w.reload(); err != nil {
		t.Fatal(err)
	}
	if _, body := w.get("/ready"); strings.Contains(body, "not reloaded") {
		t.Errorf("/ready still says %s", body)
	}
}

func TestReloadMovesTheListener(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	before := w.url
	w.reconfigure(strings.Replace(basic, "127.0.0.1:0", "localhost:0", 1))
	if err := w.reload(); err != nil {
		t.Fatal(err)
	}
	w.url = "http://" + w.agent.Addrs()[0].String()
	if w.url == before {
		t.Fatal("the listener did not move")
	}
	if version, _ := w.lookup("/v1/demo/db"); version != "v1" {
		t.Errorf("the new listener gave %s", version)
	}
	w.client.CloseIdleConnections()
	if res, err := w.client.Get(before + "/live"); err == nil {
		res.Body.Close()
		t.Error("the old listener still accepts")
	}
}

func TestChangedTokenFileIsPickedUpAndTheOldOneOverlaps(t *testing.T) {
	withGrace := func(grace string) string {
		return strings.Replace(basic, "tokenFile: ./run/token", "tokenFile: ./run/token\n  tokenGrace: "+grace, 1)
	}
	w := start(t, shortTempDir(t), withGrace("1h"))
	w.ready()
	old := w.token()
	next, last := strings.Repeat("n", 40), strings.Repeat("l", 40)
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(w.path("run/token"), []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(next)
	with := func(token string) int {
		req, err := http.NewRequest(http.MethodGet, w.url+"/v1/demo/db", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", token)
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	w.eventually("the new token works", func() bool { return with(next) == http.StatusOK })
	if status := with(old); status != http.StatusOK {
		t.Errorf("the old token is refused at once: %d", status)
	}
	w.reconfigure(withGrace("0s"))
	write(last)
	w.eventually("the last token works", func() bool { return with(last) == http.StatusOK })
	w.eventually("without grace the token before it ends", func() bool { return with(next) == http.StatusForbidden })
}

func TestKubernetesStyleSwapOfTheConfigurationReloads(t *testing.T) {
	dir := shortTempDir(t)
	publish := func(generation, text string) {
		t.Helper()
		folder := filepath.Join(dir, ".."+generation)
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "app.tmpl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(".."+generation, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("1", "ONE")
	if err := os.Symlink("..data/app.tmpl", filepath.Join(dir, "app.tmpl")); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(basic, "contents: 'PASSWORD={{ (secretJSON \"demo/db\").password }}'", "source: ./app.tmpl", 1)
	w := start(t, dir, text)
	w.ready()
	publish("2", "TWO")
	w.eventually("the new template is in use", func() bool { return w.rendered() == "TWO" })
}

// TestNoLookupFailsDuringReloads reloads while clients ask, with the listener moving now and
// then between TCP and the socket staying in place.
func TestNoLookupFailsDuringReloads(t *testing.T) {
	reloads := 300
	if testing.Short() {
		reloads = 50
	}
	w := start(t, shortTempDir(t), basic)
	w.ready()
	var lookups atomic.Uint64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, _ := http.NewRequest(http.MethodGet, w.url+"/v1/demo/db", nil)
				req.Header.Set("X-KMS-Token", w.token())
				res, err := w.client.Do(req)
				if err != nil {
					t.Errorf("a lookup failed: %v", err)
					return
				}
				res.Body.Close()
				if res.StatusCode != http.StatusOK {
					t.Errorf("a lookup answered %d", res.StatusCode)
					return
				}
				lookups.Add(1)
			}
		})
	}
	for i := range reloads {
		text := strings.Replace(basic, "'PASSWORD=", fmt.Sprintf("'P%d=", i), 1)
		text += fmt.Sprintf("cache: {ttl: %ds, maxEntries: %d}\n", 60+i, 100+i)
		w.reconfigure(text)
		if err := w.reload(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	clients.Wait()
	t.Logf("%d lookups during %d reloads", lookups.Load(), reloads)
	w.eventually("the last template", func() bool { return w.rendered() == fmt.Sprintf("P%d=%s", reloads-1, marker) })
}

// versionOf makes a version id of a test's name.
func versionOf(name string) string { return strings.ReplaceAll(name, " ", "-") }

// TestReloadThatFailsAtTheLastStepChangesNothing gives two callers one token, which only the
// endpoint itself notices.
func TestReloadThatFailsAtTheLastStepChangesNothing(t *testing.T) {
	text := strings.Replace(basic, "api: {socket: ./run/kms.sock}",
		`api: {socket: ./run/kms.sock, listen: "127.0.0.1:0", accessKeys: [{id: one, secretFile: ./one.secret, actions: ["*"], secrets: ["*"]}]}`, 1)
	w := start(t, shortTempDir(t), text)
	w.ready()
	for _, name := range []string{"a.token", "b.token", "two.secret"} {
		if err := os.WriteFile(w.path(name), []byte(strings.Repeat("t", 40)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bad := strings.Replace(text, "{id: one, secretFile: ./one.secret", "{id: two, secretFile: ./two.secret", 1)
	bad = strings.Replace(bad, "  tokenFile: ./run/token\n", `  callers:
    - {name: a, tokenFile: ./a.token, secrets: ["*"]}
    - {name: b, tokenFile: ./b.token, secrets: ["*"]}
`, 1)
	bad = strings.Replace(bad, "demo/db, versionId: v1", "demo/new, versionId: v1", 1)
	w.reconfigure(bad)
	if err := w.reload(); err == nil || !strings.Contains(err.Error(), "token") {
		t.Fatalf("two callers with one token: %v", err)
	}
	if version, _ := w.lookup("/v1/demo/db"); version != "v1" {
		t.Errorf("the token of before gave %s", version)
	}
	if status, _ := w.get("/v1/demo/new"); status != http.StatusNotFound {
		t.Errorf("the refused reload left its seed behind: %d", status)
	}
	// The access key of before still signs, the one of the refused file does not.
	for id, want := range map[string]error{"one": nil, "two": upstream.ErrUnauthenticated} {
		secret, err := os.ReadFile(w.path(id + ".secret"))
		if err != nil {
			t.Fatal(err)
		}
		client, err := kms.New(kms.Options{
			Endpoints:   []kms.Endpoint{{Host: w.agent.APIAddrs()[1].String(), Scheme: "http"}},
			Credentials: kms.StaticCredential(id, strings.TrimSpace(string(secret)), ""),
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "demo/db"})
		if !errors.Is(err, want) {
			t.Errorf("access key %s: %v", id, err)
		}
		client.Close()
	}
}

// TestReloadThatFailsShowsNothingOfIt refuses a reload because of an access key, and looks at
// what the callers of the refused file would have ended: the session of a browser.
func TestReloadThatFailsShowsNothingOfIt(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := http.Client{Jar: jar, Timeout: bound}
	see := func(url string) int {
		t.Helper()
		resp, err := browser.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if status := see(w.link(w.url, w.token())); status != http.StatusOK {
		t.Fatalf("the link: %d", status)
	}
	for name, text := range map[string]string{"a.token": strings.Repeat("t", 40), "empty.secret": ""} {
		if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bad := strings.Replace(basic, "api: {socket: ./run/kms.sock}",
		`api: {socket: ./run/kms.sock, accessKeys: [{id: one, secretFile: ./empty.secret, actions: ["*"], secrets: ["*"]}]}`, 1)
	bad = strings.Replace(bad, "  tokenFile: ./run/token\n", "  callers:\n    - {name: a, tokenFile: ./a.token, secrets: [\"*\"]}\n", 1)
	w.reconfigure(bad)
	if err := w.reload(); err == nil || !strings.Contains(err.Error(), "empty.secret") {
		t.Fatalf("an empty secret of an access key: %v", err)
	}
	if status := see(w.url + "/status"); status != http.StatusOK {
		t.Errorf("the session of a browser ended with a reload that failed: %d", status)
	}
}

// TestABusyNeighbourDoesNotHideAChange writes another file of the same folder all the time, as
// a log does.
func TestABusyNeighbourDoesNotHideAChange(t *testing.T) {
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
	w.reconfigure(strings.Replace(basic, "'PASSWORD=", "'NEW=", 1))
	w.eventually("the change is seen", func() bool { return w.rendered() == "NEW="+marker })
}
