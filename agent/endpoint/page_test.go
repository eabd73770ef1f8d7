package endpoint_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

const (
	htmlLine  = "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
	jsonLine  = "Accept: application/json"
	ownOrigin = "Origin: http://127.0.0.1:2025"
	ownSite   = "Sec-Fetch-Site: same-origin"
	pageToken = "token-of-web-0123456789abcdef"
)

// startPage serves a status that names the secrets a caller sees, for token and for the caller
// web, who may read web/*.
func startPage(t *testing.T, opts endpoint.Options) *rig {
	t.Helper()
	if opts.Callers == nil {
		opts.Callers = pageCallers(t)
	}
	opts.StatusPage = true
	opts.Status = func(v endpoint.Viewer) any {
		var seen []string
		for _, name := range []upstream.SecretName{"web/db", "job/db"} {
			if v.May(name) {
				seen = append(seen, string(name))
			}
		}
		return map[string]any{"Caller": v.Caller, "Secrets": seen}
	}
	opts.Versions = func(_ context.Context, name upstream.SecretName) (endpoint.VersionList, error) {
		if name != "web/db" {
			return endpoint.VersionList{}, &upstream.Error{Err: upstream.ErrNotFound}
		}
		return endpoint.VersionList{SecretName: name, Versions: []upstream.SecretVersion{{VersionID: "v1"}}}, nil
	}
	opts.Metrics = func(io.Writer, endpoint.Viewer) error { return nil }
	r := start(t, opts)
	r.put(value("web/db", "v1", marker, upstream.ACSCurrent))
	return r
}

func pageCallers(t *testing.T) []endpoint.Caller {
	return []endpoint.Caller{
		endpoint.DefaultCaller(mustToken(t, token)),
		{Name: "web", Tokens: []endpoint.Token{mustToken(t, pageToken)}, Secrets: []string{"web/*"}},
	}
}

// ask sends one request on a connection of its own, with a form as its body.
func (r *rig) ask(t *testing.T, method, target, form string, header ...string) reply {
	t.Helper()
	c := r.dial(t)
	defer c.nc.Close()
	if !strings.HasPrefix(strings.Join(header, "\n"), "Host:") {
		header = append([]string{hostLine}, header...)
	}
	if method == "POST" {
		header = append(header, "Content-Type: application/x-www-form-urlencoded", "Content-Length: "+strconv.Itoa(len(form)))
	}
	c.send(request(method, target, header...) + form)
	return c.receive(method)
}

// signIn signs in with a token and returns the Cookie header that a browser sends from then on.
func (r *rig) signIn(t *testing.T, token string) string {
	t.Helper()
	got := r.ask(t, "POST", "/status/sign-in", "token="+token, ownOrigin, ownSite)
	if got.status != http.StatusSeeOther || got.header.Get("Location") != "/status" {
		t.Fatalf("sign-in: %d %s", got.status, got.body)
	}
	return cookieOf(t, got)
}

func cookieOf(t *testing.T, got reply) string {
	t.Helper()
	set := got.header.Get("Set-Cookie")
	if !regexp.MustCompile(`^secretagent-2025=[A-Za-z0-9_-]{43}; path=/status; HttpOnly; SameSite=Strict$`).MatchString(set) {
		t.Fatalf("Set-Cookie: %s", set)
	}
	pair, _, _ := strings.Cut(set, ";")
	return "Cookie: " + pair
}

func (r *rig) link(t *testing.T, header ...string) string {
	t.Helper()
	got := r.ask(t, "POST", "/status/link", "", header...)
	link, _ := got.json(t)["Link"].(string)
	path, ok := strings.CutPrefix(link, "http://127.0.0.1:2025")
	if got.status != 200 || !ok || got.json(t)["ExpiresAt"] == nil {
		t.Fatalf("link: %d %s", got.status, got.body)
	}
	return path
}

// TestPageFollowsItsPolicy: nothing is inline, nothing comes from elsewhere, and the headers
// say so.
func TestPageFollowsItsPolicy(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	cookie := r.signIn(t, token)
	files, err := fs.Glob(os.DirFS("page"), "*")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	inline := regexp.MustCompile(`(?i)<script[^>]*>[^<]|<style|\sstyle=|\son[a-z]+=|javascript:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function`)
	elsewhere := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9]`)
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join("page", name))
		must(t, err)
		if found := inline.Find(text); found != nil {
			t.Errorf("%s: %q", name, found)
		}
		if found := elsewhere.Find(bytes.ReplaceAll(text, []byte("http://www.w3.org/2000/svg"), nil)); found != nil {
			t.Errorf("%s: %q comes from elsewhere", name, found)
		}
		if strings.HasSuffix(name, ".html") {
			continue
		}
		got := r.ask(t, "GET", "/status/"+name, "", ownSite)
		if got.status != 200 || got.body != string(text) {
			t.Errorf("/status/%s: %d", name, got.status)
		}
	}
	for what, got := range map[string]reply{
		"the sign-in":  r.ask(t, "GET", "/status", "", htmlLine),
		"the page":     r.ask(t, "GET", "/status", "", htmlLine, cookie),
		"the status":   r.ask(t, "GET", "/status", "", jsonLine, cookie),
		"a script":     r.ask(t, "GET", "/status/page.js", "", ownSite),
		"the versions": r.ask(t, "GET", "/status/versions?secretId=web/db", "", jsonLine, cookie),
		"a link":       r.ask(t, "GET", r.link(t, tokenLine), "", htmlLine),
		"a dead link":  r.ask(t, "GET", "/status/open?code=x", "", htmlLine),
	} {
		for header, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
				"form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
		} {
			if got.header.Get(header) != want {
				t.Errorf("%s: %s: %q", what, header, got.header.Get(header))
			}
		}
	}
}

func TestStatusIsAPageForBrowsersAlone(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	cookie := r.signIn(t, token)
	for name, test := range map[string]struct {
		header []string
		status int
		holds  string
	}{
		"a browser":                  {[]string{htmlLine}, 200, `action="/status/sign-in"`},
		"a browser with a session":   {[]string{htmlLine, cookie}, 200, `src="/status/page.js"`},
		"the page's own question":    {[]string{jsonLine, cookie, ownSite}, 200, `"Caller":"token-holder"`},
		"a program":                  {[]string{tokenLine}, 200, `"Caller":"token-holder"`},
		"a program, any type":        {[]string{tokenLine, "Accept: */*"}, 200, `"Caller":"token-holder"`},
		"a program without a token":  {[]string{"Accept: */*"}, 403, `"TokenMissing"`},
		"the page, signed out":       {[]string{jsonLine, "Cookie: secretagent-2025=" + strings.Repeat("x", 43)}, 403, `"SessionEnded"`},
		"a browser, signed out":      {[]string{htmlLine, "Cookie: secretagent-2025=" + strings.Repeat("x", 43)}, 200, `action="/status/sign-in"`},
		"the cookie of another port": {[]string{jsonLine, strings.Replace(cookie, "2025", "2026", 1)}, 403, `"TokenMissing"`},
		"rebound by a foreign name":  {[]string{"Host: evil.example:2025", htmlLine, cookie}, 403, `"HostNotAllowed"`},
		"a link on another site":     {[]string{htmlLine, cookie, "Sec-Fetch-Site: cross-site"}, 403, `"OriginNotAllowed"`},
		"a fetch by another origin":  {[]string{jsonLine, cookie, "Origin: http://127.0.0.1:8080", "Sec-Fetch-Site: same-site"}, 403, `"OriginNotAllowed"`},
		"a fetch that says same":     {[]string{jsonLine, cookie, "Origin: http://127.0.0.1:8080", ownSite}, 403, `"OriginNotAllowed"`},
		"through a proxy":            {[]string{htmlLine, cookie, "X-Forwarded-For: 10.0.0.1"}, 403, `"ForwardedRequest"`},
	} {
		got := r.ask(t, "GET", "/status", "", test.header...)
		if got.status != test.status || !strings.Contains(got.body, test.holds) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}

// TestSessionOpensTheStatusAlone: not even on a connection that has just shown the status to
// the same headers.
func TestSessionOpensTheStatusAlone(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	cookie := r.signIn(t, token)
	c := r.dial(t)
	for _, target := range []string{
		"GET /v1/web/db", "GET /secretsmanager/get?secretId=web/db", "GET /secretsmanager/batch?secretId=web/db",
		"POST /secretsmanager/report?secretId=web/db", "GET /metrics", "POST /status/link", "GET /statusx", "GET /status/unknown",
	} {
		c.send(request("GET", "/status", hostLine, jsonLine, cookie))
		if got := c.receive("GET"); got.status != 200 {
			t.Fatalf("the status: %d %s", got.status, got.body)
		}
		method, path, _ := strings.Cut(target, " ")
		c.send(request(method, path, hostLine, jsonLine, cookie))
		if got := c.receive(method); got.code != "TokenMissing" || strings.Contains(got.body, marker) {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
	}
	c.send(request("GET", "/ready", hostLine, jsonLine, cookie))
	if got := c.receive("GET"); got.status != 200 || !got.closed {
		t.Errorf("to /ready a session is a stranger: %d %v", got.status, got.closed)
	}
}

func TestPageShowsWhatItsCallerMayRead(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	cookie := r.signIn(t, pageToken)
	if got := r.ask(t, "GET", "/status", "", jsonLine, cookie); !strings.Contains(got.body, `"Caller":"web"`) || strings.Contains(got.body, "job/db") {
		t.Errorf("the status: %s", got.body)
	}
	for target, want := range map[string]string{
		"/status/versions?secretId=web/db":        `"v1"`,
		"/status/versions?secretId=web%2Fdb":      `"v1"`,
		"/status/versions?secretId=web/other":     "Forbidden.ResourceNotFound",
		"/status/versions?secretId=job/db":        "Forbidden.NoPermission",
		"/status/versions?secretId=job/none":      "Forbidden.NoPermission",
		"/status/versions":                        "MissingParameter",
		"/status/versions?secretId=%3Cscript%3E":  "InvalidParameter",
		"/status/versions?secretId=web/db&wait=1": "InvalidParameter",
	} {
		if got := r.ask(t, "GET", target, "", jsonLine, cookie); !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
	}
	if got := r.get(t, "/status/versions?secretId=web/db"); got.status != 200 {
		t.Errorf("with a token: %d %s", got.status, got.body)
	}

	// Its rights follow those of the caller, and end with its token.
	callers := pageCallers(t)
	callers[1].Secrets = []string{"other/*"}
	r.setCallers(t, callers)
	if got := r.ask(t, "GET", "/status", "", jsonLine, cookie); got.status != 200 || strings.Contains(got.body, "web/db") {
		t.Errorf("with fewer rights: %s", got.body)
	}
	r.setCallers(t, callers[:1])
	if got := r.ask(t, "GET", "/status", "", jsonLine, cookie); got.code != "SessionEnded" {
		t.Errorf("without the caller: %d %s", got.status, got.body)
	}
}

func TestOneTimeLink(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	for name, header := range map[string][]string{
		"without a token":    {ownOrigin},
		"with a wrong token": {"X-KMS-Token: " + strings.Repeat("x", 64)},
		"by a page":          {tokenLine, ownOrigin, ownSite},
		"by a session":       {r.signIn(t, token)},
	} {
		if got := r.ask(t, "POST", "/status/link", "", header...); got.status != 403 || strings.Contains(got.body, "code=") {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := r.ask(t, "GET", "/status/link", "", tokenLine); got.status != 405 || got.header.Get("Allow") != "POST" {
		t.Errorf("by GET: %d", got.status)
	}
	path := r.link(t, "X-KMS-Token: "+pageToken)
	for name, header := range map[string]string{
		"another site": "Sec-Fetch-Site: cross-site", "another origin": "Origin: http://127.0.0.1:1", "another host": "Host: evil.example",
	} {
		lines := []string{htmlLine, header}
		if strings.HasPrefix(header, "Host") {
			lines = []string{header, htmlLine}
		}
		if got := r.ask(t, "GET", path, "", lines...); got.status != 403 || got.header.Get("Set-Cookie") != "" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	got := r.ask(t, "GET", path, "", htmlLine, "Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate")
	if got.status != http.StatusSeeOther || got.header.Get("Location") != "/status" || got.body != "" {
		t.Fatalf("%d %v", got.status, got.header)
	}
	if got := r.ask(t, "GET", "/status", "", jsonLine, cookieOf(t, got)); !strings.Contains(got.body, `"Caller":"web"`) {
		t.Errorf("the session of the link: %s", got.body)
	}
	again := r.ask(t, "GET", path, "", htmlLine)
	if again.status != 403 || !again.closed || again.header.Get("Set-Cookie") != "" || !strings.Contains(again.body, "has been used already") {
		t.Errorf("the second time: %d %s", again.status, again.body)
	}
	stats := r.srv.Stats()
	if stats.Refused["LinkInvalid"] != 1 || stats.Sessions != 2 {
		t.Errorf("refused %v, %d sessions", stats.Refused, stats.Sessions)
	}
	if _, code, _ := strings.Cut(path, "code="); strings.Contains(r.log.String(), code) || strings.Contains(again.body, code) {
		t.Error("the code is in the log or in an answer")
	}
}

// TestSignInIsForThePageAlone: no other page can make a visitor's browser sign in, or out.
func TestSignInIsForThePageAlone(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	for name, test := range map[string]struct {
		header []string
		ok     bool
	}{
		"the page":                     {[]string{ownOrigin, ownSite}, true},
		"a browser that says no site":  {[]string{ownOrigin}, true},
		"a page without a referrer":    {[]string{"Origin: null", ownSite}, true},
		"neither":                      {nil, false},
		"an origin that is not told":   {[]string{"Origin: null"}, false},
		"another port":                 {[]string{"Origin: http://127.0.0.1:8080"}, false},
		"another port on this site":    {[]string{"Origin: http://127.0.0.1:8080", "Sec-Fetch-Site: same-site"}, false},
		"another name of this host":    {[]string{"Origin: http://localhost:2025", ownSite}, false},
		"another scheme":               {[]string{"Origin: https://127.0.0.1:2025", ownSite}, false},
		"another site":                 {[]string{"Origin: http://evil.example", "Sec-Fetch-Site: cross-site"}, false},
		"our origin from another site": {[]string{ownOrigin, "Sec-Fetch-Site: cross-site"}, false},
		"typed, which no form is":      {[]string{ownOrigin, "Sec-Fetch-Site: none"}, false},
		"two origins":                  {[]string{"Origin: http://evil.example", ownOrigin, ownSite}, false},
		"two sites":                    {[]string{ownOrigin, ownSite, "Sec-Fetch-Site: cross-site"}, false},
	} {
		got := r.ask(t, "POST", "/status/sign-in", "token="+token, test.header...)
		if test.ok != (got.status == http.StatusSeeOther) || !test.ok && (got.code != "OriginNotAllowed" || got.header.Get("Set-Cookie") != "") {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	cookie := r.signIn(t, token)
	if got := r.ask(t, "POST", "/status/sign-out", "", cookie, "Origin: http://evil.example"); got.code != "OriginNotAllowed" {
		t.Errorf("another page signs out: %d", got.status)
	}
	if got := r.ask(t, "GET", "/status/sign-out", "", cookie); got.status != 405 {
		t.Errorf("a link signs out: %d", got.status)
	}
	if got := r.ask(t, "GET", "/status", "", jsonLine, cookie); got.status != 200 {
		t.Errorf("still signed in: %d", got.status)
	}
	if got := r.ask(t, "POST", "/status/sign-out", "", cookie, ownOrigin, ownSite); got.status != http.StatusSeeOther || !strings.Contains(got.header.Get("Set-Cookie"), "secretagent-2025=; expires=") {
		t.Errorf("sign-out: %d %v", got.status, got.header)
	}
	if got := r.ask(t, "GET", "/status", "", jsonLine, cookie); got.code != "SessionEnded" {
		t.Errorf("after signing out: %d %s", got.status, got.body)
	}
}

func TestWrongTokenInTheFormCostsWhatItCostsElsewhere(t *testing.T) {
	var audit upstreamtest.Buffer
	log := endpoint.NewAuditLog(&audit, 0)
	r := startPage(t, endpoint.Options{Audit: log})
	wrong := strings.Repeat("wrong-", 5)
	for _, form := range []string{"token=" + wrong, "token=", "", "tok=" + token, "token=%zz", "token=" + token + "&token=" + token} {
		got := r.ask(t, "POST", "/status/sign-in", form, ownOrigin, ownSite)
		if got.status != 403 || !got.closed || got.header.Get("Set-Cookie") != "" || !strings.Contains(got.body, "not a valid token") || strings.Contains(got.body, wrong) {
			t.Errorf("%q: %d %v %s", form, got.status, got.closed, got.body)
		}
	}
	if got := r.ask(t, "POST", "/status/sign-in", "token="+strings.Repeat("x", 2000), ownOrigin, ownSite); got.code != "BodyTooLarge" {
		t.Errorf("a long one: %d %s", got.status, got.body)
	}
	r.signIn(t, "+"+token+"%0A") // as it is pasted
	if n := r.srv.Stats().Refused["TokenInvalid"]; n != 6 {
		t.Errorf("%d refusals are counted", n)
	}
	if text := audit.String(); strings.Count(text, `"Operation":"SignIn","Outcome":"TokenInvalid"`) != 6 || !strings.Contains(text, `"Caller":"token-holder"`) ||
		!strings.Contains(text, `"Outcome":"signed-in"`) || strings.Contains(text, wrong) || strings.Contains(text, token) {
		t.Errorf("the audit log: %s", text)
	}
	if strings.Contains(r.log.String(), wrong) {
		t.Error("the log quotes the token")
	}
}

func TestPageCanBeSwitchedOff(t *testing.T) {
	r := start(t, endpoint.Options{Status: func(endpoint.Viewer) any { return map[string]int{"Up": 1} }})
	for _, target := range []string{"/status", "/status/page.js", "/status/page.css", "/status/open?code=x"} {
		if got := r.ask(t, "GET", target, "", htmlLine); got.code != "TokenMissing" {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
	}
	if got := r.ask(t, "POST", "/status/sign-in", "token="+token, ownOrigin, ownSite); got.code != "TokenMissing" {
		t.Errorf("sign-in: %d %s", got.status, got.body)
	}
	if got := r.ask(t, "POST", "/status/link", "", tokenLine); got.code != "PathNotFound" {
		t.Errorf("link: %d %s", got.status, got.body)
	}
	if got := r.get(t, "/status", htmlLine); got.status != 200 || got.body != "{\"Up\":1}\n" {
		t.Errorf("the status itself: %d %s", got.status, got.body)
	}
}

func TestPageOverTLSAndFromTheSocket(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.serve(t, tls.NewListener(plain, selfSigned()))
	nc, err := tls.Dial("tcp", plain.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	must(t, err)
	defer nc.Close()
	c := &client{t, nc, newReader(nc)}
	form := "token=" + token
	c.send(request("POST", "/status/sign-in", hostLine, "Origin: https://127.0.0.1:2025", "Content-Length: "+strconv.Itoa(len(form))) + form)
	if got := c.receive("POST"); got.status != http.StatusSeeOther || !strings.Contains(got.header.Get("Set-Cookie"), "; secure") {
		t.Errorf("over TLS: %d %v", got.status, got.header)
	}
}

// TestLinkFromTheSocket leads to the TCP listener.
func TestLinkFromTheSocket(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	r.get(t, "/live") // it listens
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Skip(err)
	}
	r.serve(t, ln)
	c := dial(t, "unix", socket)
	c.send(request("POST", "/status/link", "Host: localhost", tokenLine))
	if link, _ := c.receive("POST").json(t)["Link"].(string); !strings.HasPrefix(link, "http://"+r.addr+"/status/open?code=") {
		t.Errorf("over the socket: %s", link)
	}
}

// TestBrowsersAtTheRootAreSentToThePage, and nobody else is: the guard is the same there as everywhere.
func TestBrowsersAtTheRootAreSentToThePage(t *testing.T) {
	r := startPage(t, endpoint.Options{})
	got := r.ask(t, "GET", "/", "", htmlLine)
	if got.status != 303 || got.header.Get("Location") != "/status" {
		t.Errorf("a browser: %d, %s", got.status, got.header.Get("Location"))
	}
	for what, c := range map[string]struct {
		header []string
		status int
		code   string
	}{
		"a program without a token": {[]string{"Accept: */*"}, 403, "TokenMissing"},
		"a program with one":        {[]string{"Accept: */*", tokenLine}, 404, "PathNotFound"},
		"another page":              {[]string{htmlLine, "Sec-Fetch-Site: cross-site"}, 403, "OriginNotAllowed"},
		"a proxy":                   {[]string{htmlLine, "X-Forwarded-For: 10.0.0.1"}, 403, "ForwardedRequest"},
	} {
		if got := r.ask(t, "GET", "/", "", c.header...); got.status != c.status || !strings.Contains(got.body, c.code) {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
	}
	// Nobody asks for a reload over TCP, with whatever token.
	if got := r.ask(t, "POST", "/reload", "", tokenLine); got.status != 403 || !strings.Contains(got.body, "OperatorOnly") {
		t.Errorf("a reload with a token: %d %s", got.status, got.body)
	}
}
