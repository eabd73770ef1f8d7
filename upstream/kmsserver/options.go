package kmsserver

import (
	"cmp"
	"log/slog"
	"strconv"
	"time"

	"secretagent/upstream"
)

// Options tune a [Server]. The zero value serves trusted listeners only.
type Options struct {
	// AccessKeys are the callers of signed listeners. [Server.SetAccessKeys] replaces them.
	AccessKeys []AccessKey

	// Logger gets one line per refused or failed request and a debug line per other. No line
	// holds parameters, values or signatures. Nil discards.
	Logger *slog.Logger

	// Observe is called once per request, after the answer was built, from the goroutine
	// that serves it: it must be quick and safe for concurrent use. action is empty for
	// requests that name none that is served; code is empty when the call succeeded. Nil
	// observes nothing.
	Observe func(action, code string, status int, took time.Duration)

	// Clock tells the time that timestamps are compared with. Nil means [time.Now].
	Clock func() time.Time

	Limits Limits
}

// Limits bound what clients can cost. A zero field means its default.
type Limits struct {
	// Connections per listener. A connection costs about 10 KiB, and 160 KiB more while a
	// request is being read. Default 128.
	Connections int

	// RequestTimeout is how long a call may take in the backend. Default 30 s.
	RequestTimeout time.Duration

	// ReadTimeout is how long a client may take to send a request, WriteTimeout to take its
	// answer, IdleTimeout between two requests. Defaults 15 s, 15 s and 90 s.
	ReadTimeout  time.Duration
	WriteTimeout time.Duration
	IdleTimeout  time.Duration

	// BodyBytes of one request. The longest legal one has about 130 KiB. Default 256 KiB.
	BodyBytes int

	// NoncesPerKey is how many requests of one access key are remembered to recognise
	// replays, for the 15 minutes in which they could be replayed. It bounds the sustained
	// rate of a key (the default of 262144 is 291 per second) and the memory (about 8 MiB
	// when full). A key beyond it is throttled.
	NoncesPerKey int
}

// lineBytes is the longest request line with headers. A value of 30720 bytes takes up to
// 92160 in a URL, and other parameters travel beside it.
const lineBytes = 160 << 10

// Validate returns every problem of the options as [upstream.OptionErrors]. It reads the files
// that the access keys name, and creates nothing.
func (o Options) Validate() error {
	var problems upstream.OptionErrors
	problems.Add("", checkAccessKeys(o.AccessKeys))
	_, err := o.Limits.withDefaults()
	problems.Add("limits", err)
	return problems.Err()
}

func (l Limits) withDefaults() (Limits, error) {
	var problems upstream.OptionErrors
	for _, f := range []struct {
		key      string
		value    *time.Duration
		standard time.Duration
	}{
		{"requestTimeout", &l.RequestTimeout, 30 * time.Second}, {"readTimeout", &l.ReadTimeout, 15 * time.Second},
		{"writeTimeout", &l.WriteTimeout, 15 * time.Second}, {"idleTimeout", &l.IdleTimeout, 90 * time.Second},
	} {
		if *f.value < 0 {
			problems.Addf(f.key, f.value.String(), "must be positive, or zero for %s", f.standard)
		}
		*f.value = cmp.Or(*f.value, f.standard)
	}
	for _, f := range []struct {
		key      string
		value    *int
		standard int
	}{
		{"connections", &l.Connections, 128}, {"bodyBytes", &l.BodyBytes, 256 << 10}, {"noncesPerKey", &l.NoncesPerKey, 1 << 18},
	} {
		if *f.value < 0 {
			problems.Addf(f.key, strconv.Itoa(*f.value), "must be positive, or zero for %d", f.standard)
		}
		*f.value = cmp.Or(*f.value, f.standard)
	}
	return l, problems.Err()
}
