package agent_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"secretagent/upstream/upstreamtest"
)

// link returns a one-time link for the holder of the token, as "status --open" gets it.
func (w *world) link() string {
	w.t.Helper()
	got, err := w.try(http.MethodPost, w.url+"/status/link", nil, "X-KMS-Token", w.token())
	must(w.t, err)
	var answer struct{ Link string }
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil || got.StatusCode != http.StatusOK {
		w.t.Fatalf("%s %v", got.body, err)
	}
	return answer.Link
}

// fits checks that the page needs no sideways scrolling, narrow and wide.
func (t *tab) fits(name string) {
	t.t.Helper()
	for _, width := range []int{400, 1400} {
		t.do("Emulation.setDeviceMetricsOverride", object{"width": width, "height": 860, "deviceScaleFactor": 1, "mobile": false})
		if over := t.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth"); over != 0.0 {
			t.t.Errorf("%s at %d px is %v px too wide", name, width, over)
		}
	}
}

// keepsQuiet checks that the page complained of nothing, asked nobody else, and holds none of
// the texts.
func (t *tab) keepsQuiet(base string, texts ...string) {
	t.t.Helper()
	held := fmt.Sprint(t.eval("document.documentElement.outerHTML + JSON.stringify({...localStorage, ...sessionStorage}) + location.href + document.cookie + document.title"))
	if len(t.complaints) > 0 {
		t.t.Errorf("the page complains: %q", t.complaints)
	}
	for _, address := range t.requests {
		if !strings.HasPrefix(address, base+"/status") && address != "about:blank" {
			t.t.Errorf("the page asks for %s", address)
		}
	}
	for _, text := range texts {
		if strings.Contains(held, text) {
			t.t.Errorf("the page holds %s", text)
		}
	}
}

func quoted(text string) string {
	b, _ := json.Marshal(text)
	return string(b)
}

// isHeaded is an expression that is true for a status page with that headline.
func isHeaded(text string) string {
	return "location.pathname === '/status' && document.querySelector('h1').textContent === " + quoted(text)
}

// TestPage looks at the status page with a real browser.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes seconds to start")
	}
	browser := startChromium(t)
	t.Run("a rotation appears live", func(t *testing.T) { pageShowsARotation(t, browser) })
	t.Run("a link opens it", func(t *testing.T) { pageOpensByALink(t, browser) })
	t.Run("many secrets in an outage", func(t *testing.T) { pageOfManySecretsInAnOutage(t, browser) })
}

func pageShowsARotation(t *testing.T, browser *chromium) {
	w := start(t, shortTempDir(t), basic+"rotations: [{secret: demo/db, every: 720h, new: {password: {field: password}}}]\n")
	w.ready()
	network := upstreamtest.NewFaulty(t, strings.TrimPrefix(w.url, "http://"))
	base := "http://" + network.Addr()
	const second = "MARKER-second-secret"

	// Signed out, the page shows a form, and the right token opens it.
	tab := browser.open(t)
	tab.visit(base + "/status")
	tab.await("form", "document.querySelector('input[type=password]') !== null")
	tab.fits("signed out")
	tab.eval("document.querySelector('#token').value = " + quoted(" "+w.token()+" ") + "; document.querySelector('form').requestSubmit()")
	tab.await("calm page", isHeaded("All is well"))
	tab.await("version", "document.querySelector('#secrets').innerText.includes('demo/db') && document.querySelector('.held').innerText.includes('v1')")

	tab.await("next rotation", `/demo.db.*–.*in.(29|30).d/s.test(document.querySelector("#rotations").innerText)`)

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
			tab.do("Input.dispatchKeyEvent", object{"type": kind, "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13})
		}
		tab.await("the key", "document.activeElement.getAttribute('aria-expanded') === '"+want+"'")
	}

	// The filter.
	for text, want := range map[string]string{
		"nothing like it": "document.querySelector('#secrets').innerText.includes('No secret matches')",
		"DB v3":           "document.querySelectorAll('#secrets-rows tr.details').length === 1",
	} {
		tab.eval("document.querySelector('#filter').value = " + quoted(text) + "; document.querySelector('#filter').dispatchEvent(new Event('input'))")
		tab.await("filtered list", want)
	}

	// An agent that does not answer is told, and so is its return.
	network.Set(upstreamtest.Reset)
	tab.await("banner", "!document.querySelector('#banner').hidden && "+isHeaded("The agent does not answer"))
	tab.fits("no answer")
	network.Set(upstreamtest.Fault{})
	tab.await("recovery", "document.querySelector('#banner').hidden && "+isHeaded("All is well"))

	// The button ends the session; a wrong token is told.
	tab.eval("document.querySelector('form[action=\"/status/sign-out\"]').requestSubmit()")
	tab.await("form again", "document.querySelector('input[type=password]') !== null")
	tab.eval("document.querySelector('#token').value = 'not-the-token-of-anybody'; document.querySelector('form').requestSubmit()")
	tab.await("refusal", "document.body.innerText.includes('not a valid token')")
	for _, text := range []string{marker, second, w.token()} {
		if strings.Contains(w.log.String(), text) {
			t.Errorf("the log holds %s", text)
		}
	}
}

func pageOpensByALink(t *testing.T, browser *chromium) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	link := w.link()
	_, code, _ := strings.Cut(link, "code=")
	if len(code) < 22 {
		t.Fatalf("the code of %s has less than 128 bits", link)
	}
	tab := browser.open(t)
	tab.visit(link)
	tab.await("page", "location.href === '"+w.url+"/status' && "+isHeaded("All is well"))
	tab.keepsQuiet(w.url, marker, w.token(), code)

	// A page of another origin gets nothing with the visitor's cookie, not even by a form.
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!doctype html><title>elsewhere</title><link rel=icon href=data:,><body>")
	}))
	t.Cleanup(foreign.Close)
	tab.visit(edited(foreign.URL, "127.0.0.1", "localhost"))
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
	tab.await("page", isHeaded("All is well"))
	write(t, w.dir, map[string]string{"run/token": strings.Repeat("new-token-", 5)})
	must(t, w.reload(edited(basic, "  tokenFile: ./run/token\n", "  tokenFile: ./run/token\n  tokenGrace: 0s\n")))
	tab.await("end of the session", isHeaded("You are signed out")+" && !document.querySelector('#banner-sign-in').hidden")
}

// pageOfManySecretsInAnOutage: 500 secrets, names and texts that would like to be markup,
// and an upstream that goes away.
func pageOfManySecretsInAnOutage(t *testing.T, browser *chromium) {
	hostile := []string{"app/../../etc/passwd", "app/=HYPERLINK", "app/@import", "app/--", "app/constructor", "app/__proto__", "app/" + strings.Repeat("x", 180)}
	seed, declared := "", ""
	for i := range 499 {
		name := fmt.Sprintf("app/service-%03d/database", i)
		if i < len(hostile) {
			name = hostile[i]
		}
		seed += fmt.Sprintf("\n      - {name: %q, versionId: v%d, data: %q}", name, 1+i%9, marker)
		declared += fmt.Sprintf("  - {name: %q, ttl: %ds}\n", name, 60+i%7*60)
	}
	cloud, host, file := startKMS(t, marker, seed)
	w := startOnCloud(t, shortTempDir(t), edited(cloudConfig(host, file), "secrets: [{name: app/db}]", "secrets:\n  - {name: app/db, ttl: 1s}\n"+declared,
		"    timeout: 30s\n", "    timeout: 30s\n    budget: {perSecond: 1000, burst: 1000}\n")+`
templates:
  - {contents: '{{ secret "app/db" }}', destination: './rendered/<img src=x onerror=window.hit=1>'}
  - {contents: '{{ secretField "app/db" "<script>window.hit=2</script>" }}', destination: './rendered/broken'}
`)
	tab := browser.open(t)
	tab.visit(w.link())
	tab.await("list", "document.querySelectorAll('#secrets-rows > tr').length === 500")
	tab.await("hostile path", "document.querySelector('#files').innerText.includes('onerror=window.hit=1>')")
	tab.fits("many secrets")
	for _, name := range hostile {
		if got := tab.eval("[...document.querySelectorAll('#secrets-rows .text')].some((n) => n.textContent === " + quoted(name) + ")"); got != true {
			t.Errorf("%s is not there as it is spelled", name)
		}
	}

	tab.await("all are held", "document.body.innerText.includes('Holding 500 secrets')")
	must(t, cloud.stop())
	w.eventually("a stale answer", func() bool { return w.ask("/v1/app/db", w.token()).Header.Get("X-Cache") == "stale" })
	tab.await("outage", "document.querySelector('#attention').innerText.includes('app/db') && /stale[^]*served until \\d/.test(document.querySelector('#secrets-rows > tr').innerText)")
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
