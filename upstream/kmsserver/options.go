package kmsserver

import (
	"context"
	"io"
	"log/slog"
	"net/url"
	"time"
)

// Options tune a [Server]. The zero value serves trusted listeners only.
type Options struct {
	// AccessKeys are the callers of signed listeners. [Server.PrepareAccessKeys] replaces them.
	AccessKeys []AccessKey

	// Watch offers [upstream.WatchAction] on signed listeners: whoever makes the server calls [Server.Changed] for
	// every change.
	Watch bool

	// Operator answers other paths than that of the KMS API on trusted listeners, for whoever runs the agent; nil and
	// nil for those that it does not know, and nil knows none. It takes as long as it takes, [MaxOperation] at most. An
	// error is answered as one of the KMS API is.
	Operator func(ctx context.Context, method, path string, query url.Values) (*Operated, error)

	// Logger gets one line per refused or failed request and a debug line per other. No line
	// holds parameters, values or signatures. Nil discards.
	Logger *slog.Logger

	// Observe is called once per request, after the answer was built, from the goroutine
	// that serves it: it must be quick and safe for concurrent use. action is empty for
	// requests that name none that is served; code is empty when the call succeeded. Nil
	// observes nothing.
	Observe func(action, code string, status int, took time.Duration)
}

// Operated is what [Options.Operator] answers.
type Operated struct {
	Status int    // of HTTP; 0 means 200
	Body   []byte // JSON

	// File is sent in place of Body, where it is not nil: Size bytes, and then it is closed. Whoever gets fewer
	// knows that it broke off.
	File io.ReadCloser
	Size int64
}

// MaxOperation bounds what an operator asks for, and the time in which the answer must have been taken.
const MaxOperation = 15 * time.Minute

// Validate returns every problem of the options as [upstream.OptionErrors], but those of
// [CheckSecretFiles], which keep no server from starting.
func (o Options) Validate() error { return checkAccessKeys(o.AccessKeys) }

// limits bound what clients can cost.
type limits struct {
	Connections int // see MaxConnections
	Watchers    int // see MaxWatchers

	// BodyBytes of one request. The longest legal one has about 130 KiB.
	BodyBytes int

	// NoncesPerKey is how many requests of one access key are remembered to recognise
	// replays, for the 15 minutes in which they could be replayed. It bounds the sustained
	// rate of a key (2^18 are 291 per second) and the memory (about 8 MiB when full). A key
	// beyond it is throttled.
	NoncesPerKey int

	RequestTimeout time.Duration // of a call in the backend
	ClientTimeout  time.Duration // of a client that sends a request or takes its answer
	IdleTimeout    time.Duration // between two requests
	WatchTime      time.Duration // of a watcher to whom nothing is told; shorter than RequestTimeout

	// WatchedFor is how long a key counts as one that watches after a poll: longer than its clients
	// wait, and rest when they cannot reach us.
	WatchedFor time.Duration
}

// MaxConnections is how many connections each [Access] has at most. A connection costs about 10 KiB,
// and 160 KiB more while a request is being read.
const MaxConnections = 128

// MaxWatchers is how many signed connections may wait for changes beside these. One that waits
// costs about 10 KiB.
const MaxWatchers = 256

var standardLimits = limits{
	Connections: MaxConnections, Watchers: MaxWatchers, BodyBytes: 256 << 10, NoncesPerKey: 1 << 18,
	RequestTimeout: 30 * time.Second, ClientTimeout: 15 * time.Second, IdleTimeout: 90 * time.Second,
	WatchTime: 20 * time.Second, WatchedFor: 2 * time.Minute,
}

// lineBytes is the longest request line with headers. A value of 30720 bytes takes up to
// 92160 in a URL, and other parameters travel beside it.
const lineBytes = 160 << 10
