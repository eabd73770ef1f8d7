package agent_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// shots is the variable that says where to leave pictures of the page, for people to look at:
//
//	PAGE_SHOTS=/tmp/shots go test ./agent -run TestPage
const shots = "PAGE_SHOTS"

// chromium is a headless browser that is driven over its DevTools pipe: JSON messages that end
// with a zero byte.
type chromium struct {
	to io.Writer

	mu      sync.Mutex
	next    int
	waiting map[int]chan answer
	tabs    map[string]*tab // by session
	gone    bool
}

// answer is what the browser says, to a command or by itself.
type answer struct {
	ID        int
	SessionID string `json:"sessionId"`
	Method    string
	Params    json.RawMessage
	Result    json.RawMessage
	Error     *struct{ Message string }
}

// browserPath returns where Chromium is. Without one the test is skipped, except where CI
// has promised one.
func browserPath(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const missing = "NO BROWSER: the status page is not looked at. Install Chromium (Debian: apt-get install chromium)."
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// startChromium starts a browser that ends with the test. It reaches loopback addresses only.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	path := browserPath(t)
	home := shortTempDir(t)
	args := []string{
		"--headless=new", "--remote-debugging-pipe", "--user-data-dir=" + home, "--no-first-run", "--no-default-browser-check",
		"--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-sync", "--disable-background-networking",
		"--disable-component-update", "--disable-default-apps", "--metrics-recording-only", "--password-store=basic",
		"--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost", "about:blank",
	}
	if os.Getuid() == 0 {
		args = append([]string{"--no-sandbox"}, args...)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "HOME="+home)
	in, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{in, out} // 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Close()
	c := &chromium{to: to, waiting: map[int]chan answer{}, tabs: map[string]*tab{}}
	read := make(chan struct{})
	go func() {
		defer close(read)
		c.read(from)
	}()
	t.Cleanup(func() {
		to.Close() // the browser ends by itself when its pipe does
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		from.Close()
		<-read
	})
	return c
}

// read takes in what the browser says until it ends.
func (c *chromium) read(from io.Reader) {
	r := bufio.NewReaderSize(from, 1<<20)
	for {
		text, err := r.ReadBytes(0)
		c.mu.Lock()
		if err != nil {
			c.gone = true
			for id, ch := range c.waiting {
				close(ch)
				delete(c.waiting, id)
			}
			c.mu.Unlock()
			return
		}
		var a answer
		if json.Unmarshal(text[:len(text)-1], &a) == nil {
			if ch := c.waiting[a.ID]; ch != nil {
				delete(c.waiting, a.ID)
				ch <- a
			} else if tab := c.tabs[a.SessionID]; tab != nil {
				tab.note(a)
			}
		}
		c.mu.Unlock()
	}
}

// call sends a command and returns its result.
func (c *chromium) call(t *testing.T, session, method string, params any) json.RawMessage {
	t.Helper()
	result, err := c.try(t, session, method, params)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// try is call for a command that the browser may refuse.
func (c *chromium) try(t *testing.T, session, method string, params any) (json.RawMessage, error) {
	t.Helper()
	c.mu.Lock()
	c.next++
	id, ch := c.next, make(chan answer, 1)
	if c.gone {
		c.mu.Unlock()
		t.Fatalf("%s: the browser has ended", method)
	}
	c.waiting[id] = ch
	text, err := json.Marshal(map[string]any{"id": id, "sessionId": session, "method": method, "params": params})
	if session == "" {
		text, err = json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	}
	if err == nil {
		_, err = c.to.Write(append(text, 0))
	}
	c.mu.Unlock()
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	select {
	case a, ok := <-ch:
		if !ok {
			t.Fatalf("%s: the browser has ended", method)
		}
		if a.Error != nil {
			return nil, fmt.Errorf("%s: %s", method, a.Error.Message)
		}
		return a.Result, nil
	case <-time.After(time.Minute):
		t.Fatalf("%s: the browser does not answer", method)
	}
	return nil, nil
}

// tab is one page of a browser, with cookies of its own.
type tab struct {
	*chromium
	t       *testing.T
	session string

	complaints []string // console errors and warnings, exceptions, violations of the policy
	requests   []string // addresses
}

// open returns an empty tab for a test.
func (c *chromium) open(t *testing.T) *tab {
	t.Helper()
	var browserContext struct{ BrowserContextID string }
	var target struct{ TargetID string }
	var attached struct{ SessionID string }
	decode(t, c.call(t, "", "Target.createBrowserContext", map[string]any{}), &browserContext)
	decode(t, c.call(t, "", "Target.createTarget", map[string]any{"url": "about:blank", "browserContextId": browserContext.BrowserContextID}), &target)
	decode(t, c.call(t, "", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}), &attached)
	tab := &tab{chromium: c, t: t, session: attached.SessionID}
	c.mu.Lock()
	c.tabs[tab.session] = tab
	c.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		tab.do(domain+".enable", map[string]any{})
	}
	t.Cleanup(func() {
		c.call(t, "", "Target.disposeBrowserContext", map[string]any{"browserContextId": browserContext.BrowserContextID})
	})
	return tab
}

func decode(t *testing.T, text json.RawMessage, v any) {
	t.Helper()
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatal(err)
	}
}

func (t *tab) do(method string, params any) json.RawMessage {
	t.t.Helper()
	return t.call(t.t, t.session, method, params)
}

// note remembers what the page complains of and asks for. The lock of the browser is held.
func (t *tab) note(a answer) {
	var p struct {
		Type    string
		Args    []struct{ Value, Description any }
		Entry   struct{ Level, Text, URL string }
		Request struct{ URL string }

		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	_ = json.Unmarshal(a.Params, &p)
	switch a.Method {
	case "Runtime.consoleAPICalled":
		if p.Type == "error" || p.Type == "warning" || p.Type == "assert" {
			t.complaints = append(t.complaints, fmt.Sprint("console: ", p.Args))
		}
	case "Runtime.exceptionThrown":
		t.complaints = append(t.complaints, p.ExceptionDetails.Text+" "+p.ExceptionDetails.Exception.Description)
	case "Log.entryAdded":
		if p.Entry.Level == "error" || p.Entry.Level == "warning" {
			t.complaints = append(t.complaints, p.Entry.Text+" "+p.Entry.URL)
		}
	case "Network.requestWillBeSent":
		t.requests = append(t.requests, p.Request.URL)
	}
}

// heard returns what the page complained of so far, and the addresses that it asked for.
func (t *tab) heard() (complaints, requests []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.complaints...), append([]string(nil), t.requests...)
}

// visit follows a link, as if it were typed into the address bar.
func (t *tab) visit(url string) {
	t.t.Helper()
	t.eval("window.old = true")
	t.do("Page.navigate", map[string]any{"url": url, "transitionType": "typed"})
	t.await("another page", "!window.old && document.readyState === 'complete'")
}

// eval returns what an expression is in the page, as JSON does.
func (t *tab) eval(expression string) any {
	t.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	decode(t.t, t.do("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}), &r)
	if r.ExceptionDetails != nil {
		t.t.Fatalf("%s: %s", expression, r.ExceptionDetails.Exception.Description)
	}
	return r.Result.Value
}

// await waits until an expression is true in the page.
func (t *tab) await(what, expression string) {
	t.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var r struct{ Result struct{ Value any } }
		text, err := t.try(t.t, t.session, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true})
		if err != nil {
			continue // between two pages there is none to ask
		}
		if decode(t.t, text, &r); r.Result.Value == true {
			return
		}
	}
	complaints, _ := t.heard()
	t.t.Fatalf("no %s: the page at %v says %v, and complains %q", what, t.eval("location.href"), t.eval("document.body.innerText"), complaints)
}

// sized gives the window a width, and the page a colour scheme: light or dark.
func (t *tab) sized(width, height int, scheme string) {
	t.t.Helper()
	t.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false})
	t.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
}

// shoot writes a picture of the page, of its first 1600 pixels, into the folder that the
// variable shots names, if it is set.
func (t *tab) shoot(name string) {
	t.t.Helper()
	dir := os.Getenv(shots)
	if dir == "" {
		return
	}
	var shot struct{ Data string }
	clip := map[string]any{"x": 0, "y": 0, "scale": 1, "width": t.eval("innerWidth"), "height": t.eval("Math.min(1600, document.documentElement.scrollHeight)")}
	decode(t.t, t.do("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true, "clip": clip}), &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(dir+"/"+strings.ReplaceAll(name, " ", "-")+".png", png, 0o600)
	}
	if err != nil {
		t.t.Error(err)
	}
}
