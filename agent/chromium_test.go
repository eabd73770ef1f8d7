package agent_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// chromium is a headless browser that is driven over its DevTools pipe: JSON messages that end
// with a zero byte. One goroutine uses it and its tabs.
type chromium struct {
	to, from *os.File
	in       *bufio.Reader // of from
	calls    int
	tabs     map[string]*tab // by session
}

// object is one of JSON.
type object = map[string]any

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
	path, home := browserPath(t), shortTempDir(t)
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
	must(t, err)
	from, out, err := os.Pipe()
	must(t, err)
	cmd.ExtraFiles = []*os.File{in, out} // 3 and 4
	must(t, cmd.Start())
	must(t, errors.Join(in.Close(), out.Close()))
	t.Cleanup(func() {
		to.Close() // the browser ends by itself when its pipe does
		kill := time.AfterFunc(bound, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		from.Close()
	})
	return &chromium{to: to, from: from, in: bufio.NewReader(from), tabs: map[string]*tab{}}
}

// message is what the browser says, to a command or by itself.
type message struct {
	ID        int
	SessionID string `json:"sessionId"`
	Method    string
	Params    json.RawMessage
	Result    json.RawMessage
	Error     *struct{ Message string }
}

// call sends a command, to a tab or the browser itself, and takes in what the browser says until
// the result, which it stores in result. The browser may refuse.
func (c *chromium) call(t *testing.T, session, method string, params object, result any) error {
	t.Helper()
	c.calls++
	command := object{"id": c.calls, "method": method, "params": params}
	if session != "" {
		command["sessionId"] = session
	}
	text, err := json.Marshal(command)
	must(t, err)
	_, err = c.to.Write(append(text, 0))
	must(t, err)
	must(t, c.from.SetReadDeadline(time.Now().Add(bound)))
	for {
		text, err := c.in.ReadBytes(0)
		if err != nil {
			t.Fatalf("%s: the browser does not answer: %v", method, err)
		}
		var m message
		must(t, json.Unmarshal(text[:len(text)-1], &m))
		switch tab := c.tabs[m.SessionID]; {
		case m.ID != c.calls && tab != nil:
			tab.note(m)
		case m.ID == c.calls && m.Error != nil:
			return errors.New(method + ": " + m.Error.Message)
		case m.ID == c.calls:
			return json.Unmarshal(m.Result, result)
		}
	}
}

// tab is one page of a browser.
type tab struct {
	*chromium

	t          *testing.T
	session    string
	complaints []string // errors and warnings, of the console too
	requests   []string // addresses that the page asked for
}

// open opens a tab with cookies of its own. What its pages do after a time, they do ten times as
// soon.
func (c *chromium) open(t *testing.T) *tab {
	t.Helper()
	var made struct{ BrowserContextID, TargetID, SessionID string }
	must(t, c.call(t, "", "Target.createBrowserContext", object{"disposeOnDetach": true}, &made))
	must(t, c.call(t, "", "Target.createTarget", object{"url": "about:blank", "browserContextId": made.BrowserContextID}, &made))
	must(t, c.call(t, "", "Target.attachToTarget", object{"targetId": made.TargetID, "flatten": true}, &made))
	tab := &tab{chromium: c, t: t, session: made.SessionID}
	c.tabs[tab.session] = tab
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		tab.do(domain+".enable", object{})
	}
	tab.do("Page.addScriptToEvaluateOnNewDocument", object{"source": "const later = setTimeout; setTimeout = (f, ms, ...args) => later(f, ms / 10, ...args)"})
	return tab
}

func (t *tab) do(method string, params object) {
	t.t.Helper()
	must(t.t, t.call(t.t, t.session, method, params, new(any)))
}

// note remembers what the page complains of and asks for.
func (t *tab) note(m message) {
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
	_ = json.Unmarshal(m.Params, &p)
	switch level := p.Type + p.Entry.Level; {
	case m.Method == "Runtime.exceptionThrown":
		t.complaints = append(t.complaints, p.ExceptionDetails.Text+" "+p.ExceptionDetails.Exception.Description)
	case m.Method == "Network.requestWillBeSent":
		t.requests = append(t.requests, p.Request.URL)
	case (m.Method == "Runtime.consoleAPICalled" || m.Method == "Log.entryAdded") && (level == "error" || level == "warning" || level == "assert"):
		t.complaints = append(t.complaints, fmt.Sprint(p.Args, p.Entry))
	}
}

// visit follows a link, as if it were typed into the address bar.
func (t *tab) visit(url string) {
	t.t.Helper()
	t.eval("window.old = true")
	t.do("Page.navigate", object{"url": url, "transitionType": "typed"})
	t.await("another page", "!window.old && document.readyState === 'complete'")
}

// try returns what an expression is in the page, as JSON does.
func (t *tab) try(expression string) (any, error) {
	t.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	err := t.call(t.t, t.session, "Runtime.evaluate", object{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	if err == nil && r.ExceptionDetails != nil {
		err = fmt.Errorf("%s: %s", expression, r.ExceptionDetails.Exception.Description)
	}
	return r.Result.Value, err
}

// eval is try of what cannot fail.
func (t *tab) eval(expression string) any {
	t.t.Helper()
	value, err := t.try(expression)
	must(t.t, err)
	return value
}

// await waits until an expression is true in the page. Between two pages it is neither.
func (t *tab) await(what, expression string) {
	t.t.Helper()
	for deadline := time.Now().Add(bound); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if value, _ := t.try(expression); value == true {
			return
		}
	}
	t.t.Fatalf("no %s: the page at %v says %v, and complains %q", what, t.eval("location.href"), t.eval("document.body.innerText"), t.complaints)
}
