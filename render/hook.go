package render

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"secretagent/upstream/keyfile"
)

const (
	maxHookBody = 64 << 10 // bytes of an HTTP answer that are read
	maxPIDFile  = 64       // bytes of a pid file
)

// errNoProcess is the answer of a pid file that is missing, empty, or names a process that has
// ended, and of an address where nobody listens.
var errNoProcess = errors.New("the process does not run")

// Hook is what to do after a change: exactly one of Command, PIDFile, Child and URL.
//
// It runs after a change was published and is owed until it succeeds, with a growing,
// jittered pause between attempts. A process of PIDFile that does not run is no failure, nor is an
// address of URL where nobody listens: an application may wait for the agent to be ready before it
// starts. The hook stays owed, in case it started with the content from before. The hook never runs twice at the same time, and
// targets with an equal hook share one run when they change together. A hook that is cut short
// because the agent stops stays owed.
type Hook struct {
	// Command is a program and its arguments. No shell reads it, unless the program is one.
	// It runs in a process group of its own, which is killed when the timeout ends, with
	// PATH, HOME, the locale and the time zone as its whole environment. Its output goes to
	// the log, at most 8 KiB, and its beginning into the error of a run that failed, with
	// known secret values, and what the files have of them, masked. Exit code 0 is success.
	Command []string

	// PIDFile names a file that holds the number of a process to send Signal to. One that belongs
	// neither to root nor to the agent's user may name processes of its owner only.
	PIDFile string

	// Child sends Signal to the supervised child process, through Options.Signal.
	Child bool

	// Signal is a name such as HUP or SIGHUP; empty: HUP.
	Signal string

	// URL is called on this host: a loopback address or localhost, http or https. Redirects
	// are not followed; a status of 200 to 299 is success.
	URL string

	// Method is GET or POST; empty: POST.
	Method string

	// Timeout bounds one run; zero means 30 s.
	Timeout time.Duration
}

func (h *Hook) signal() string         { return cmp.Or(h.Signal, "HUP") }
func (h *Hook) method() string         { return cmp.Or(h.Method, http.MethodPost) }
func (h *Hook) timeout() time.Duration { return cmp.Or(h.Timeout, defaultHookTimeout) }

// key is equal for equal hooks.
func (h *Hook) key(splay time.Duration) string { return fmt.Sprintf("%#v %s", *h, splay) }

// String says which hook it is, for logs and errors, without arguments: these may hold what
// should not be in a log.
func (h *Hook) String() string {
	switch {
	case len(h.Command) > 0:
		return "command " + h.Command[0]
	case h.PIDFile != "":
		return "signal " + h.signal() + " to the process of " + h.PIDFile
	case h.Child:
		return "signal " + h.signal() + " to the child process"
	}
	if u, err := url.Parse(h.URL); err == nil {
		return h.method() + " " + u.Scheme + "://" + u.Host + u.Path
	}
	return h.method()
}

// run does it once. mask hides values in the output of a command.
func (h *Hook) run(ctx context.Context, log *slog.Logger, signal func(os.Signal) error, mask func() *masker) error {
	return bounded(ctx, h.timeout(), "hook: "+h.String(), func(ctx context.Context) error {
		switch {
		case len(h.Command) > 0:
			return runCommand(ctx, log.With("hook", h.String()), h.Command, mask)
		case h.URL != "":
			return h.call(ctx)
		}
		return h.send(signal)
	})
}

// send sends the signal.
func (h *Hook) send(toChild func(os.Signal) error) error {
	sig, err := parseSignal(h.signal())
	if err != nil {
		return err
	}
	if h.Child {
		return toChild(sig)
	}
	text, uid, err := keyfile.ReadOwned(h.PIDFile, maxPIDFile)
	number := strings.TrimSpace(string(text))
	if errors.Is(err, fs.ErrNotExist) || err == nil && number == "" {
		return errNoProcess // not there yet: daemons make the file before they write into it
	}
	if err != nil {
		return err
	}
	// 0 and negative numbers would mean a whole group.
	pid, err := strconv.ParseUint(number, 10, 31)
	if err != nil || pid == 0 {
		return errors.New("the file does not hold the number of a process")
	}
	process, err := os.FindProcess(int(pid))
	if err != nil {
		return err
	}
	defer process.Release()
	// The process is held by now, where the kernel can do that: its number stays its own.
	if uid != 0 && uid != os.Geteuid() {
		switch other, err := ownerOfProcess(int(pid)); {
		case err != nil:
			return err
		case other != uid:
			return fmt.Errorf("%s belongs to uid %d and names a process of uid %d: give the file to root or to the user of the process", h.PIDFile, uid, other)
		}
	}
	if err := process.Signal(sig); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return errNoProcess
}

// loopbackURL parses a URL whose host is this host. Its errors do not quote the text.
func loopbackURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("must be an http or https URL")
	case u.User != nil:
		return nil, errors.New("must not contain a user or password")
	case strings.EqualFold(u.Hostname(), "localhost"):
		return u, nil
	}
	if ip := net.ParseIP(u.Hostname()); ip == nil || !ip.IsLoopback() {
		return nil, errors.New("must point to a loopback host, such as 127.0.0.1")
	}
	return u, nil
}

// call sends the HTTP request.
func (h *Hook) call(ctx context.Context) error {
	u, err := loopbackURL(h.URL)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, h.method(), u.String(), http.NoBody)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		Proxy:             nil, // the environment must not lead the call away
		DisableKeepAlives: true,
		DialContext:       dialLoopback,
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		if refusedByNobody(err) {
			return errNoProcess // a pod's application starts when the agent is ready, and not before
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the URL, whose query may hold a token
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxHookBody))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the answer was %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return nil
}

// dialLoopback resolves localhost itself: a resolver may answer with any address.
func dialLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	if !strings.EqualFold(host, "localhost") {
		return d.DialContext(ctx, network, address)
	}
	conn, err := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		if conn6, err6 := d.DialContext(ctx, network, net.JoinHostPort("::1", port)); err6 == nil {
			return conn6, nil
		}
	}
	return conn, err
}
