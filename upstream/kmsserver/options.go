package kmsserver

import (
	"fmt"
	"log/slog"
	"time"
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

func (l Limits) withDefaults() (Limits, error) {
	for _, f := range []struct {
		name     string
		value    *time.Duration
		standard time.Duration
	}{
		{"RequestTimeout", &l.RequestTimeout, 30 * time.Second}, {"ReadTimeout", &l.ReadTimeout, 15 * time.Second},
		{"WriteTimeout", &l.WriteTimeout, 15 * time.Second}, {"IdleTimeout", &l.IdleTimeout, 90 * time.Second},
	} {
		if *f.value < 0 {
			return l, fmt.Errorf("limits: %s is %s: it must be positive, or zero for the default of %s", f.name, *f.value, f.standard)
		}
		if *f.value == 0 {
			*f.value = f.standard
		}
	}
	for _, f := range []struct {
		name     string
		value    *int
		standard int
	}{
		{"Connections", &l.Connections, 128}, {"BodyBytes", &l.BodyBytes, 256 << 10}, {"NoncesPerKey", &l.NoncesPerKey, 1 << 18},
	} {
		if *f.value < 0 {
			return l, fmt.Errorf("limits: %s is %d: it must be positive, or zero for the default of %d", f.name, *f.value, f.standard)
		}
		if *f.value == 0 {
			*f.value = f.standard
		}
	}
	return l, nil
}
