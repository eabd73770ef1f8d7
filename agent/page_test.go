package agent_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// link returns a one-time link for the holder of token, as "status --open" gets it, that
// begins with base.
func (w *world) link(base, token string) string {
	w.t.Helper()
	req, err := http.NewRequest(http.MethodPost, base+"/status/link", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-KMS-Token", token)
	res, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct{ Link string }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != http.StatusOK {
		w.t.Fatalf("%d %v", res.StatusCode, err)
	}
	return answer.Link
}

const (
	everything = "document.documentElement.outerHTML + JSON.stringify({...localStorage, ...sessionStorage}) + location.href + document.cookie + document.title"
	tooWide    = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
)

// fits checks that the page needs no sideways scrolling, narrow and wide, and takes pictures.
func (t *tab) fits(name string) {
	t.t.Helper()
	for _, size := range []struct{ width, height int }{{400, 860}, {1400, 900}} {
		schemes := []string{"light"}
		if os.Getenv(shots) != "" {
			schemes = append(schemes, "dark")
		}
		for _, scheme := range schemes {
			t.sized(size.width, size.height, scheme)
			if over := t.eval(tooWide); over != 0.0 {
				t.t.Errorf("%s at %d px is %v px too wide", name, size.width, over)
			}
			t.shoot(fmt.Sprintf("%s %d %s", name, size.width, scheme))
		}
	}
}

// keepsQuiet checks that the page complained of nothing, asked nobody else, and holds none of
// the texts.
func (t *tab) keepsQuiet(base string, texts ...string) {
	t.t.Helper()
	complaints, requests := t.heard()
	if len(complaints) > 0 {
		t.t.Errorf("the page complains: %q", complaints)
	}
	for _, address := range requests {
		if !strings.HasPrefix(address, base+"/status") && address != "about:blank" {
			t.t.Errorf("the page asks for %s", address)
		}
	}
	held := fmt.Sprint(t.eval(everything))
	for _, text := range texts {
		if strings.Contains(held, text) {
			t.t.Errorf("the page holds %s", text)
		}
	}
}

// TestPage looks at the status page with a real browser.
func TestPage(t *testing.T) {
	browser := startChromium(t)
	t.Run("a rotation appears live", func(t *testing.T) { pageShowsARotation(t, browser) })
	t.Run("a link opens it once", func(t *testing.T) { pageOpensByALinkOnce(t, browser) })
	t.Run("many secrets in an outage", func(t *testing.T) { pageOfManySecretsInAnOutage(t, browser) })
}

func pageShowsARotation(t *testing.T, browser *chromium) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	network := upstreamtest.NewFaulty(t, strings.TrimPrefix(w.url, "http://"))
	base := "http://" + network.Addr()
	const second = "MARKER-second-secret"

	// Signed out, the page shows a form, and the right token opens it.
	tab := browser.open(t)
	tab.visit(base + "/status")
	tab.await("form", "document.querySelector('input[type=password]') !== null")
	tab.fits("signed out")
	tab.eval("document.querySelector('#token').value = " + quoted(" "+w.token()+" "))
	tab.eval("document.querySelector('form').requestSubmit()")
	tab.await("calm page", "location.pathname === '/status' && document.querySelector('h1').textContent === 'All is well'")
	tab.await("version", "document.querySelector('#secrets').innerText.includes('demo/db') && document.querySelector('.held').innerText.includes('v1')")

	// A rotation appears by itself: in the list, in the strip and in the picture of versions.
	tab.eval("window.sameDocument = true")
	w.put("demo/db", "v2", `{"username":"app","password":"`+second+`"}`)
	tab.await("rotation", "document.querySelector('.held').innerText.includes('v2')")
	tab.await("picture", `[...document.querySelectorAll('.box')].map((b) => b.innerText.replace(/\s+/g, ' ')).join() .match(/ACSPrevious v1 .*ACSCurrent v2 /) !== null`)
	tab.await("strip", "document.querySelectorAll('.strip .version').length === 2")
	w.put("demo/db", "v3", `{"username":"app","password":"`+second+`"}`)
	tab.await("deprecated version", "document.querySelector('.box.deprecated .id')?.textContent === 'v1' && document.querySelector('.box.deprecated').innerText.includes('no label')")
	tab.fits("one secret")
	if tab.eval("window.sameDocument") != true {
		t.Error("the page was loaded again")
	}
	tab.keepsQuiet(base, marker, second, w.token())

	// By keyboard: the details close and open.
	tab.eval("document.querySelector('button.name').focus()")
	for _, want := range []string{"false", "true"} {
		for _, kind := range []string{"rawKeyDown", "char", "keyUp"} {
			tab.do("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13})
		}
		tab.await("the key", "document.activeElement.getAttribute('aria-expanded') === '"+want+"'")
	}

	// The filter.
	tab.eval("document.querySelector('#filter').value = 'nothing like it'; document.querySelector('#filter').dispatchEvent(new Event('input'))")
	tab.await("empty list", "document.querySelector('#secrets').innerText.includes('No secret matches')")
	tab.eval("document.querySelector('#filter').value = 'DB v3'; document.querySelector('#filter').dispatchEvent(new Event('input'))")
	tab.await("filtered list", "document.querySelectorAll('#secrets-rows tr.details').length === 1")

	// An agent that does not answer is told, and so is its return.
	network.Set(upstreamtest.Reset)
	tab.await("banner", "!document.querySelector('#banner').hidden && document.querySelector('h1').textContent === 'The agent does not answer'")
	tab.fits("no answer")
	network.Set(upstreamtest.Fault{})
	tab.await("recovery", "document.querySelector('#banner').hidden && document.querySelector('h1').textContent === 'All is well'")

	// Signing out ends the session for good.
	tab.eval("document.querySelector('form[action=\"/status/sign-out\"]').requestSubmit()")
	tab.await("form again", "document.querySelector('input[type=password]') !== null")
	if got := tab.eval("fetch('/status', {headers: {Accept: 'application/json'}}).then((r) => r.status)"); got != 403.0 {
		t.Errorf("after signing out: %v", got)
	}
	tab.eval("document.querySelector('#token').value = 'not-the-token-of-anybody'; document.querySelector('form').requestSubmit()")
	tab.await("refusal", "document.body.innerText.includes('not a valid token')")
	if _, body := w.get("/metrics"); !strings.Contains(body, `code="TokenInvalid"`) {
		t.Error("the wrong token is not counted")
	}
	for _, text := range []string{marker, second, w.token()} {
		if strings.Contains(w.log.String(), text) {
			t.Errorf("the log holds %s", text)
		}
	}
}

func quoted(text string) string {
	b, _ := json.Marshal(text)
	return string(b)
}

func pageOpensByALinkOnce(t *testing.T, browser *chromium) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	link := w.link(w.url, w.token())
	_, code, _ := strings.Cut(link, "code=")
	if len(code) < 22 {
		t.Fatalf("the code of %s has less than 128 bits", link)
	}
	tab := browser.open(t)
	tab.visit(link)
	tab.await("page", "location.href === '"+w.url+"/status' && document.querySelector('h1').textContent === 'All is well'")
	tab.keepsQuiet(w.url, marker, w.token(), code)
	if got := tab.eval("Promise.all(['/v1/demo/db', '/metrics', '/secretsmanager/get?secretId=demo/db'].map((p) => fetch(p).then((r) => r.status))).then(String)"); got != "403,403,403" {
		t.Errorf("the session opens more than the status: %v", got)
	}
	if got := tab.eval("document.cookie"); got != "" {
		t.Errorf("scripts see the cookie %v", got)
	}

	other := browser.open(t)
	other.visit(link)
	other.await("refusal", "document.body.innerText.includes('has been used already')")

	// A page of another origin gets nothing with the visitor's cookie, not even by a form.
	foreign := startForeignPage(t)
	tab.visit(foreign)
	for _, script := range []string{
		"fetch('" + w.url + "/status', {credentials: 'include'}).then(() => 'answered', () => 'refused')",
		"new Promise((done) => { const s = document.createElement('script'); s.onload = () => done('answered'); s.onerror = () => done('refused'); s.src = '" + w.url + "/status/page.js'; document.body.append(s) })",
	} {
		if got := tab.eval(script); got != "refused" {
			t.Errorf("%s: %v", script, got)
		}
	}
	tab.eval("document.body.innerHTML = '<form method=post action=\"" + w.url + "/status/sign-in\"><input name=token value=\"" + w.token() + "\"></form>'; document.forms[0].submit()")
	tab.await("refusal", "document.body.innerText.includes('OriginNotAllowed')")

	// When the token is replaced and its grace is over, the session is over too.
	tab.visit(w.url + "/status")
	tab.await("page", "document.querySelector('h1').textContent === 'All is well'")
	if err := os.WriteFile(w.path("run/token"), []byte(strings.Repeat("new-token-", 5)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.reconfigure(strings.Replace(basic, "  tokenFile: ./run/token\n", "  tokenFile: ./run/token\n  tokenGrace: 0s\n", 1))
	if err := w.reload(); err != nil {
		t.Fatal(err)
	}
	tab.await("end of the session", "document.querySelector('h1').textContent === 'You are signed out' && !document.querySelector('#banner-sign-in').hidden")
}

// startForeignPage serves an empty page on another origin.
func startForeignPage(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><title>elsewhere</title><link rel=icon href=data:,><body>")
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return "http://" + strings.Replace(ln.Addr().String(), "127.0.0.1", "localhost", 1)
}

// pageOfManySecretsInAnOutage: 500 secrets, names and texts that would like to be markup,
// and an upstream that goes away.
func pageOfManySecretsInAnOutage(t *testing.T, browser *chromium) {
	hostile := []upstream.SecretName{"app/../../etc/passwd", "app/=HYPERLINK", "app/@import", "app/--", "app/constructor", "app/__proto__",
		upstream.SecretName("app/" + strings.Repeat("x", 180))}
	seed, declared := "", ""
	for i := range 499 {
		name := upstream.SecretName(fmt.Sprintf("app/service-%03d/database", i))
		if i < len(hostile) {
			name = hostile[i]
		}
		seed += fmt.Sprintf("\n      - {name: %q, versionId: v%d, data: %q}", name, 1+i%9, marker)
		declared += fmt.Sprintf("  - {name: %q, ttl: %ds}\n", name, 60+i%7*60)
	}
	cloud, host, file := startKMS(t, marker, seed)
	text := strings.Replace(cloudConfig(host, file), "secrets: [{name: app/db}]", "secrets:\n  - {name: app/db, ttl: 1s}\n"+declared, 1)
	text = strings.Replace(text, "    timeout: 500ms\n", "    timeout: 500ms\n    budget: {perSecond: 1000, burst: 1000}\n", 1)
	text += `
templates:
  - {contents: '{{ secret "app/db" }}', destination: './rendered/<img src=x onerror=window.hit=1>'}
  - {contents: '{{ secretField "app/db" "<script>window.hit=2</script>" }}', destination: './rendered/broken'}
`
	w := startOnCloud(t, shortTempDir(t), text)
	w.eventually("all are held", func() bool {
		s, _ := w.statusOf(w.token())
		held := 0
		for _, x := range s.Secrets {
			if x.Held {
				held++
			}
		}
		return held == 500
	})

	tab := browser.open(t)
	tab.visit(w.link(w.url, w.token()))
	tab.await("list", "document.querySelectorAll('#secrets-rows > tr').length === 500")
	tab.await("hostile path", "document.querySelector('#files').innerText.includes('onerror=window.hit=1>')")
	tab.fits("many secrets")
	for _, name := range hostile {
		if got := tab.eval("[...document.querySelectorAll('#secrets-rows .text')].some((n) => n.textContent === " + quoted(string(name)) + ")"); got != true {
			t.Errorf("%s is not there as it is spelled", name)
		}
	}
	tab.keepsQuiet(w.url, marker, w.token())

	if err := cloud.stop(); err != nil {
		t.Fatal(err)
	}
	w.eventually("a stale answer", func() bool {
		_, _ = w.get("/v1/app/db")
		s, _ := w.statusOf(w.token())
		return len(history(s, "app/db", "stale")) > 0
	})
	tab.await("outage", "document.querySelector('#attention').innerText.includes('app/db') && document.querySelector('#secrets-rows > tr').innerText.includes('stale')")
	tab.await("strip of the outage", "document.querySelector('#secrets-rows .strip .failed') !== null && document.querySelector('#secrets-rows .strip .stale') !== null")
	tab.fits("outage")
	if tab.eval("window.hit") != nil {
		t.Error("a text became markup and ran")
	}
	if n := tab.eval("document.querySelectorAll('main img, main script').length"); n != 0.0 {
		t.Errorf("%v elements that a text brought in", n)
	}
	tab.keepsQuiet(w.url, marker, w.token())
}

// history returns the events of a kind of one secret.
func history(s agent.Status, name upstream.SecretName, kind string) (events []agent.HistoryEvent) {
	for _, x := range s.Secrets {
		if x.SecretName != name {
			continue
		}
		for _, e := range x.History {
			if string(e.Kind) == kind {
				events = append(events, e)
			}
		}
	}
	return events
}
