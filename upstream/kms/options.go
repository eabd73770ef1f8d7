package kms

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Options configures a [Client]. Only Endpoints is needed; every other zero value means the
// default named at its field.
type Options struct {
	// Endpoints are tried in this order: the first is preferred, the others take over while
	// it is down.
	Endpoints []Endpoint

	// Credentials signs the calls. It may be nil only when every endpoint is a socket.
	Credentials CredentialProvider

	// Timeout bounds one attempt, from borrowing a connection to the last byte of the
	// answer. Default 5s.
	Timeout time.Duration

	// Deadline bounds a whole call with all its attempts and waits. A context that ends
	// earlier wins. Default 20s.
	Deadline time.Duration

	Retry   Retry
	Budget  Budget
	Breaker Breaker

	// MaxConcurrent bounds the calls that are on their way at the same time, and with them
	// the connections to each endpoint. Default 32.
	MaxConcurrent int

	// Logger hears of endpoints that rest or return, of the breaker and, at debug level, of
	// every failed attempt. Nil discards.
	Logger *slog.Logger

	// Observe, when set, is called after every attempt, from the goroutine of the call. It
	// must be quick and safe for concurrent use.
	Observe func(Observation)
}

// Endpoint is one place that answers the KMS API.
type Endpoint struct {
	// Region such as cn-hangzhou. It may be empty where Host tells it, and for loopback
	// hosts and sockets.
	Region string

	// Host, with an optional port. Empty: the public shared gateway of Region. A host of a
	// dedicated gateway (INSTANCE.cryptoservice.kms.aliyuncs.com) serves GetSecretValue
	// alone; other operations skip it.
	Host string

	// Scheme is https (also when empty), or http for a loopback host.
	Scheme string

	// CAFile holds the authorities that this endpoint, and no other, is checked against, in
	// place of the system's. It is PEM and is read once, by [New].
	CAFile string
	roots  *x509.CertPool // of CAFile

	// Socket is the path of a unix socket, the KMS API of a local agent. The other fields
	// are then empty. Budget and breaker do not apply to it: the other side is ours.
	Socket string
}

// Retry says how often and how patiently a call is repeated.
type Retry struct {
	MaxAttempts int           // of one call, on all endpoints together. Default 4
	Base        time.Duration // upper bound of the first wait; doubles with each wait. Default 200ms
	Cap         time.Duration // upper bound of every wait. Default 5s
}

// Budget bounds the rate of attempts. It is the ceiling: the budget starts lower and adapts
// to what the service grants.
type Budget struct {
	PerSecond float64 // sustained. Default 50
	Burst     int     // at once after a quiet time. Default 100
}

// Breaker says when to stop asking a service that only fails.
type Breaker struct {
	Failures int           // attempts in a row that open it. Default 10
	Pause    time.Duration // before the first probe; doubles while probes fail. Default 2s
	MaxPause time.Duration // upper bound of the pause. Default 1m
}

// Observation is one finished attempt, for metrics. It never carries a value.
type Observation struct {
	Op       string        // such as GetSecretValue
	Endpoint string        // host, or the path of the socket
	Attempt  int           // from 1 within its call
	Code     string        // empty on success, else the KMS code or that of its class
	Took     time.Duration // of this attempt
}

// gatewaySuffix marks hosts of dedicated gateways, which serve GetSecretValue alone.
const gatewaySuffix = ".cryptoservice.kms.aliyuncs.com"

var (
	regionPattern = regexp.MustCompile(`^[a-z0-9-]{2,64}$`)
	hostPattern   = regexp.MustCompile(`^[A-Za-z0-9._-]{1,253}$`)
	sharedHost    = regexp.MustCompile(`^kms(?:-vpc)?\.([a-z0-9-]+)\.aliyuncs\.com$`)
)

// Validate returns all problems of o as [upstream.OptionErrors], with keys below
// upstream.alibaba. It reads the files that [New] reads, and accepts what New accepts, except
// that it does not ask for Credentials, which no file contains.
func (o Options) Validate() error {
	_, err := o.withDefaults()
	return err
}

// withDefaults returns o with every default filled in, or all that is wrong with it.
func (o Options) withDefaults() (Options, error) {
	o.Timeout = cmp.Or(o.Timeout, 5*time.Second)
	o.Deadline = cmp.Or(o.Deadline, 20*time.Second)
	o.Retry.MaxAttempts = cmp.Or(o.Retry.MaxAttempts, 4)
	o.Retry.Base = cmp.Or(o.Retry.Base, 200*time.Millisecond)
	o.Retry.Cap = cmp.Or(o.Retry.Cap, 5*time.Second)
	o.Budget.PerSecond = cmp.Or(o.Budget.PerSecond, 50)
	o.Budget.Burst = cmp.Or(o.Budget.Burst, 100)
	o.Breaker.Failures = cmp.Or(o.Breaker.Failures, 10)
	o.Breaker.Pause = cmp.Or(o.Breaker.Pause, 2*time.Second)
	o.Breaker.MaxPause = cmp.Or(o.Breaker.MaxPause, time.Minute)
	o.MaxConcurrent = cmp.Or(o.MaxConcurrent, 32)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}

	var p upstream.OptionErrors
	check := func(ok bool, key string, value any, format string, args ...any) {
		if !ok {
			p.Addf(key, fmt.Sprint(value), format, args...)
		}
	}
	check(o.Timeout > 0, "timeout", o.Timeout, "must be positive")
	check(o.Deadline >= o.Timeout, "deadline", o.Deadline, "must not be shorter than timeout, %s: no attempt could use it", o.Timeout)
	check(o.Retry.MaxAttempts > 0 && o.Retry.MaxAttempts <= 100, "retry.maxAttempts", o.Retry.MaxAttempts, "must be 1 to 100")
	check(o.Retry.Base > 0, "retry.base", o.Retry.Base, "must be positive")
	check(o.Retry.Cap >= o.Retry.Base, "retry.cap", o.Retry.Cap, "must not be shorter than base, %s", o.Retry.Base)
	check(o.Budget.PerSecond >= 0.03 && o.Budget.PerSecond <= 1e6, "budget.perSecond", o.Budget.PerSecond, "must be 0.03 to 1000000")
	check(o.Budget.Burst > 0, "budget.burst", o.Budget.Burst, "must be positive")
	check(o.Breaker.Failures > 0, "breaker.failures", o.Breaker.Failures, "must be positive")
	check(o.Breaker.Pause > 0, "breaker.pause", o.Breaker.Pause, "must be positive")
	check(o.Breaker.MaxPause >= o.Breaker.Pause, "breaker.maxPause", o.Breaker.MaxPause, "must not be shorter than pause, %s", o.Breaker.Pause)
	check(o.MaxConcurrent > 0 && o.MaxConcurrent <= 1024, "maxConcurrent", o.MaxConcurrent, "must be 1 to 1024")
	if len(o.Endpoints) == 0 {
		p.Addf("endpoints", "", "must hold at least one endpoint")
	}
	endpoints := make([]Endpoint, len(o.Endpoints))
	for i, e := range o.Endpoints {
		var err error
		endpoints[i], err = e.withDefaults()
		p.Add(fmt.Sprintf("endpoints[%d]", i), err)
	}
	o.Endpoints = endpoints
	return o, p.Err()
}

// withDefaults returns e with scheme, host, region and authorities filled in, or all that is
// wrong with it.
func (e Endpoint) withDefaults() (Endpoint, error) {
	var p upstream.OptionErrors
	if e.Socket != "" {
		if e != (Endpoint{Socket: e.Socket}) {
			p.Addf("socket", e.Socket, "must stand alone: a socket has no region, host, scheme or CA")
		}
		return e, p.Err()
	}
	name, ok := hostname(e.Host)
	if !ok && e.Host != "" {
		p.Addf("host", withoutUser(e.Host), "must be a host name, with :port if need be; the scheme has a key of its own")
	}
	loopback := isLoopback(name)
	if shared := sharedHost.FindStringSubmatch(strings.ToLower(name)); shared != nil {
		e.Region = cmp.Or(e.Region, shared[1])
	}
	switch {
	case e.Region == "" && !loopback:
		p.Addf("region", "", "is missing: the host does not tell it")
	case e.Region != "" && !regionPattern.MatchString(e.Region):
		p.Addf("region", e.Region, "must be a region id such as cn-hangzhou")
	}
	e.Host = cmp.Or(e.Host, "kms."+e.Region+".aliyuncs.com")
	if e.Host == name && strings.Contains(name, ":") {
		e.Host = "[" + name + "]" // as it stands in a URL
	}
	e.Scheme = cmp.Or(e.Scheme, "https")
	switch {
	case e.Scheme == "http" && !loopback:
		p.Addf("scheme", e.Scheme, "plain http is allowed for a loopback host only: use https")
	case e.Scheme != "http" && e.Scheme != "https":
		p.Addf("scheme", e.Scheme, "must be https or http")
	}
	if e.Scheme == "http" && e.CAFile != "" {
		p.Addf("caFile", e.CAFile, "has no use with scheme http")
	} else {
		p.Add("caFile", e.readCAs())
	}
	return e, p.Err()
}

// readCAs fills in the authorities of CAFile.
func (e *Endpoint) readCAs() error {
	if e.CAFile == "" {
		return nil
	}
	pem, err := keyfile.PEM.Read(e.CAFile)
	if err != nil {
		return err
	}
	e.roots = x509.NewCertPool()
	if !e.roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate in PEM form", e.CAFile)
	}
	return nil
}

// hostname checks a host with an optional port, and returns it without port and brackets.
func hostname(host string) (string, bool) {
	name := host
	if h, port, err := net.SplitHostPort(host); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", false
		}
		name = h
	}
	if bare := strings.Trim(name, "[]"); net.ParseIP(bare) != nil {
		return bare, true
	}
	// Digits and dots alone are an address, here one that is none.
	return name, hostPattern.MatchString(name) && strings.Trim(name, "0123456789.") != ""
}

func isLoopback(name string) bool {
	if ip := net.ParseIP(name); ip != nil {
		return ip.IsLoopback()
	}
	return strings.EqualFold(name, "localhost")
}
