package agent

import (
	"cmp"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/common/expfmt"

	"secretagent/agent/child"
	"secretagent/agent/credentials"
	"secretagent/agent/endpoint"
	"secretagent/cache"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
)

// metrics is what the agent shows at /metrics. Parts that count for themselves are read
// at each scrape, so that the lookup path pays nothing for being seen; only what is rare and
// slow, such as upstream calls, is observed as it happens.
//
// Labels take their values from closed sets, operations, codes and outcomes, or from the
// configuration. What clients ask for never becomes a label.
type metrics struct {
	registry *prometheus.Registry

	upstreamCalls   *prometheus.CounterVec   // by operation and code
	upstreamSeconds *prometheus.HistogramVec // by operation
	upstreamRetries *prometheus.CounterVec   // by operation
	upstreamCodes   labelValues

	apiRequests *prometheus.CounterVec   // by action and code
	apiSeconds  *prometheus.HistogramVec // by action

	lookupSeconds *prometheus.HistogramVec // by result

	fetchSeconds *prometheus.HistogramVec // by outcome
	refreshes    *prometheus.CounterVec   // by outcome
	childEvents  *prometheus.CounterVec   // by event
}

func newMetrics(version string) *metrics {
	// For a service on another host, and for one in this process.
	lookupBuckets := []float64{2.5e-6, 5e-6, 1e-5, 2.5e-5, 1e-4, 5e-4, 0.0025, 0.01, 0.05, 0.25, 1, 5}
	callBuckets := []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5}
	apiBuckets := []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5}
	m := &metrics{registry: prometheus.NewRegistry()}
	registered := promauto.With(m.registry)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return registered.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return registered.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m.upstreamCalls = counter("secretagent_upstream_calls_total",
		"Attempts to call Alibaba Cloud KMS, by operation and code; the code is OK or that of the KMS API; other when there are too many.", "operation", "code")
	m.upstreamSeconds = histogram("secretagent_upstream_call_duration_seconds",
		"Duration of attempts to call Alibaba Cloud KMS.", callBuckets, "operation")
	m.upstreamRetries = counter("secretagent_upstream_retries_total",
		"Those of the attempts that were not the first of their call.", "operation")
	m.apiRequests = counter("secretagent_kms_api_requests_total",
		"Requests to the KMS API of the built-in backend, by action and code; unknown is every action that is not served.", "action", "code")
	m.apiSeconds = histogram("secretagent_kms_api_request_duration_seconds",
		"Duration of requests to the KMS API of the built-in backend.", apiBuckets, "action")
	m.fetchSeconds = histogram("secretagent_cache_fetch_duration_seconds",
		"Duration of calls of the cache to the upstream, retries and waits included, by what they found.", callBuckets, "outcome")
	m.refreshes = counter("secretagent_cache_refreshes_total",
		"Those of the calls of the cache to the upstream that no lookup waited for, by what they found.", "outcome")
	m.lookupSeconds = histogram("secretagent_endpoint_lookup_duration_seconds",
		"Duration of lookups of one secret, from request to answer. Every miss, stale answer and error is timed, but only one hit in 64 of each connection: "+
			"secretagent_endpoint_lookups_total has the counts.", lookupBuckets, "result")
	m.childEvents = counter("secretagent_child_events_total",
		"What happened to the supervised application and its variables.", "event")
	// There from the start, so that a first increase is seen as one.
	for _, result := range []string{"hit", "miss", "stale", "error"} {
		m.lookupSeconds.WithLabelValues(result)
	}
	for o := cache.First; o <= cache.Failed; o++ {
		m.refreshes.WithLabelValues(o.String())
	}
	registered.NewGauge(prometheus.GaugeOpts{
		Name:        "secretagent_build_info",
		Help:        "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}).Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// maxUpstreamCodes is more than the service has codes.
const maxUpstreamCodes = 60

// labelValues are the values that a label has taken. They come from elsewhere, so that there
// are so many and no more; the zero value is ready.
type labelValues struct {
	mu   sync.Mutex
	seen map[string]bool
}

// bound returns value, or "other" when it would be one too many or is too long.
func (l *labelValues) bound(value string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.seen[value]:
		return value
	case len(l.seen) >= maxUpstreamCodes, len(value) > 64:
		return "other"
	}
	if l.seen == nil {
		l.seen = map[string]bool{}
	}
	l.seen[value] = true
	return value
}

// observeCall counts one attempt of the cloud client. The code is what the other side said.
func (m *metrics) observeCall(o kms.Observation) {
	m.upstreamCalls.WithLabelValues(o.Op, m.upstreamCodes.bound(cmp.Or(o.Code, "OK"))).Inc()
	m.upstreamSeconds.WithLabelValues(o.Op).Observe(o.Took.Seconds())
	if o.Attempt > 1 {
		m.upstreamRetries.WithLabelValues(o.Op).Inc()
	}
}

// observeRequest counts one request to the KMS API.
func (m *metrics) observeRequest(action, code string, _ int, took time.Duration) {
	action = cmp.Or(action, "unknown")
	m.apiRequests.WithLabelValues(action, cmp.Or(code, "OK")).Inc()
	m.apiSeconds.WithLabelValues(action).Observe(took.Seconds())
}

// observeFetch times one call of the cache to the upstream.
func (m *metrics) observeFetch(f cache.Fetch) {
	m.fetchSeconds.WithLabelValues(f.Outcome.String()).Observe(f.Duration.Seconds())
	if f.Background {
		m.refreshes.WithLabelValues(f.Outcome.String()).Inc()
	}
}

// observeLookup times one lookup at the endpoint.
func (m *metrics) observeLookup(result string, took time.Duration) {
	m.lookupSeconds.WithLabelValues(result).Observe(took.Seconds())
}

// observeChild counts what happens to the supervised application.
func (m *metrics) observeChild(e child.Event) { m.childEvents.WithLabelValues(string(e)).Inc() }

// plainLabels are those that name nothing of the user's but services and certificates. Everybody who
// may see any metric may see them; at metrics.listen without a token that is everybody.
var plainLabels = []string{
	"action", "certificate", "code", "endpoint", "event", "goversion", "kind", "network", "operation", "outcome", "reason", "result", "state", "version",
}

// writeMetrics writes what v may see of the metrics. Series with another label than plainLabels are
// only for who may see what it names.
func (a *Agent) writeMetrics(w io.Writer, v endpoint.Viewer) error {
	if v.All {
		return a.metrics.write(w, func(string, string) bool { return true })
	}
	files := map[string]bool{}
	for _, f := range a.renderer().Status() {
		files[f.Path] = seesFile(v, f)
	}
	return a.metrics.write(w, func(label, value string) bool {
		switch label {
		case "secret":
			ref, err := upstream.ParseSecretRef(value)
			return err == nil && v.May(ref.SecretName)
		case "target":
			return files[value]
		case "caller":
			return value == v.Caller
		}
		return slices.Contains(plainLabels, label)
	})
}

// write writes those series in the Prometheus text format whose labels all may be shown.
func (m *metrics) write(w io.Writer, show func(label, value string) bool) error {
	families, err := m.registry.Gather()
	if err != nil {
		return err
	}
	for _, family := range families {
		shown := family.Metric[:0]
		for _, series := range family.Metric {
			hidden := false
			for _, label := range series.Label {
				hidden = hidden || !show(label.GetName(), label.GetValue())
			}
			if !hidden {
				shown = append(shown, series)
			}
		}
		if family.Metric = shown; len(shown) == 0 {
			continue
		}
		if _, err := expfmt.MetricFamilyToText(w, family); err != nil {
			return err
		}
	}
	return nil
}

// collector reads the parts of an agent at each scrape.
type collector struct{ agent *Agent }

// Describe sends nothing: which series exist depends on what happened so far.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect reads every part once.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := sink{ch}
	c.endpoint(s)
	c.monitor(s)
	c.unitCredentials(s)
	c.api(s)
	c.cache(s)
	c.files(s)
	c.child(s)
	c.rotations(s)
	c.agentItself(s)
	c.certificates(s)
	c.agent.backend.collect(s)
}

func (c collector) endpoint(s sink) {
	e := c.agent.endpoint.Stats()
	s.counters("secretagent_endpoint_lookups_total", "Values answered, those of batches included, by how the cache came by them; not_modified are answers without a value.",
		"result", map[string]uint64{"hit": e.Hits, "miss": e.Misses, "stale": e.Stale, "not_modified": e.NotModified})
	s.counters("secretagent_endpoint_refusals_total", "Requests that the guard or a limit refused, by code.", "code", e.Refused)
	s.counters("secretagent_endpoint_errors_total", "Requests answered with an error of the upstream, by code.", "code", e.Failed)
	s.counter("secretagent_endpoint_batches_total", "Batch requests.", e.Batches)
	s.counter("secretagent_endpoint_reports_total", "Reports of refused values.", e.Reports)
	s.counter("secretagent_endpoint_waits_total", "Clients that began to wait for a change.", e.Waits)
	s.gauge("secretagent_endpoint_connections", "Open connections that do not wait.", float64(e.Connections))
	s.gauge("secretagent_endpoint_connections_limit", "The limit of connections.", float64(c.agent.config().Endpoint.MaxConnections))
	s.gauge("secretagent_endpoint_page_sessions", "Browsers that may see the status page.", float64(e.Sessions))
	s.gauge("secretagent_endpoint_waiting_clients", "Clients that wait for a change.", float64(e.Waiting))
	s.gauge("secretagent_endpoint_waiting_clients_limit", "The limit of waiting clients.", float64(c.agent.config().Endpoint.MaxWaiting))
	s.counter("secretagent_endpoint_connections_evicted_total", "Connections closed to make room for others.", e.Evicted)
	s.counter("secretagent_endpoint_connections_timed_out_total", "Connections closed because they did not move.", e.TimedOut)
	s.counter("secretagent_endpoint_panics_total", "Defects caught while answering.", e.Panics)
	for _, caller := range c.agent.endpoint.Callers() {
		s.counter("secretagent_endpoint_caller_lookups_total", "Values answered to the caller, and answers that a value is still the same.", caller.Lookups, "caller", caller.Name)
		s.counter("secretagent_endpoint_caller_refusals_total", "Requests of the caller that the guard or a limit refused.", caller.Refusals, "caller", caller.Name)
		s.gauge("secretagent_endpoint_caller_shut_out", "1 while nobody is taken for the caller, because its token file is of no use.", boolean(caller.ShutOut != ""), "caller", caller.Name)
		s.gauge("secretagent_endpoint_caller_connections", "Open connections that last asked as the caller, waiting ones included.", float64(caller.Connections), "caller", caller.Name)
		s.moment("secretagent_endpoint_caller_last_seen_timestamp_seconds", "When the caller last asked for anything, to about a second.", caller.LastSeen, "caller", caller.Name)
		s.moment("secretagent_endpoint_caller_old_token_expiry_timestamp_seconds", "When the token ends that the caller had before it was replaced; there only until then.",
			caller.OldTokenUntil, "caller", caller.Name)
	}
	if c.agent.audit != nil {
		s.counter("secretagent_audit_lines_suppressed_total", "Refusals that were not audited because there were too many.", e.AuditDropped)
		s.counter("secretagent_audit_lines_failed_total", "Audit lines that could not be written.", c.agent.audit.Lost())
	}
	if lost := c.agent.deps.LogLost; lost != nil {
		s.counter("secretagent_log_lines_failed_total", "Lines of standard error that nobody took in time, or that could not be written.", lost())
	}
}

// monitor shows who watches the agent from other hosts, where that is possible.
func (c collector) monitor(s sink) {
	if c.agent.config().Metrics.Listen == "" {
		return
	}
	st := c.agent.monitor.Stats()
	for _, refused := range []map[string]uint64{st.Refused, st.Failed} {
		s.counters("secretagent_metrics_refusals_total", "Requests at metrics.listen that were refused, by code.", "code", refused)
	}
	s.gauge("secretagent_metrics_connections", "Open connections to metrics.listen.", float64(st.Connections+st.HealthConnections))
	s.gauge("secretagent_metrics_connections_limit", "The limit of connections to metrics.listen.", endpoint.MonitorConnections)
	s.counter("secretagent_metrics_connections_evicted_total", "Connections to metrics.listen closed to make room for others.", st.Evicted)
	s.counter("secretagent_metrics_connections_timed_out_total", "Connections to metrics.listen closed because they did not move.", st.TimedOut)
	s.counter("secretagent_metrics_panics_total", "Defects caught while answering at metrics.listen.", st.Panics)
}

// unitCredentials shows what services of systemd were given, where they are given anything.
func (c collector) unitCredentials(s sink) {
	if c.agent.config().Endpoint.Credentials == nil {
		return
	}
	st := c.agent.credentials.Stats()
	s.counters("secretagent_unit_credentials_given_total", "Credentials given to services of systemd, by how the cache came by them.", "result", st.Given)
	s.counters("secretagent_unit_credentials_refused_total", "Credentials refused by the agent itself, by what does not fit: peer, address, unit, credential or size.", "reason", st.Refused)
	s.counters("secretagent_unit_credentials_failed_total", "Credentials that could not be given because of the upstream, by code.", "code", st.Failed)
	s.gauge("secretagent_unit_credentials_connections", "Open connections of systemd.", float64(st.Open))
	s.gauge("secretagent_unit_credentials_connections_limit", "The limit of connections of systemd.", credentials.MaxConnections)
}

// api shows the connections and access keys of the KMS API, where it is served.
func (c collector) api(s sink) {
	if api, _ := c.agent.config().Upstream.API(); api != nil && c.agent.api != nil {
		shutOut := c.agent.api.ShutOut()
		for _, key := range api.AccessKeys {
			s.gauge("secretagent_kms_api_access_key_shut_out", "1 while nothing is taken that the access key signs, because its secret file is of no use.", boolean(shutOut[key.ID] != ""), "access_key", key.ID)
		}
	}
	for _, ln := range c.agent.apiListeners {
		network, st := ln.Addr().Network(), c.agent.api.Stats(ln.access)
		s.gauge("secretagent_kms_api_connections", "Open connections to the KMS API of the built-in backend.", float64(st.Open+st.Spare), "network", network)
		s.gauge("secretagent_kms_api_connections_limit", "The limit of connections to the KMS API.", kmsserver.MaxConnections, "network", network)
		s.counter("secretagent_kms_api_connections_evicted_total", "Connections to the KMS API closed to make room for others.", st.Evicted, "network", network)
		s.counter("secretagent_kms_api_connections_timed_out_total", "Connections to the KMS API closed because they did not move.", st.TimedOut, "network", network)
		if ln.signed() {
			s.gauge("secretagent_kms_api_watchers", "Agents that wait for changes at the KMS API.", float64(st.Parked))
			s.gauge("secretagent_kms_api_watchers_limit", "The limit of agents that wait for changes.", kmsserver.MaxWatchers)
		}
	}
}

func (c collector) cache(s sink) {
	st := c.agent.cache.Stats()
	s.counters("secretagent_cache_lookups_total", "Lookups by every reader (endpoint, templates, child), by how they ended.",
		"result", map[string]uint64{"hit": st.Hits, "miss": st.Misses, "negative": st.Negative, "error": st.Errors})
	s.counters("secretagent_cache_stale_answers_total", "Values served past their lifetime, by the code of the failure.", "reason", st.Stale)
	for outcome, n := range st.Fetches {
		s.counter("secretagent_cache_fetches_total", "Calls to the upstream, by what they found.", n, "outcome", outcome.String())
	}
	s.counter("secretagent_cache_evictions_total", "Values pushed out by newer ones.", st.Evictions)
	s.counter("secretagent_cache_oversized_total", "Values too large to be kept.", st.Oversized)
	s.counter("secretagent_cache_forced_refreshes_throttled_total", "Refreshes that clients asked for beyond the limit.", st.Throttled)
	const entries, entriesHelp = "secretagent_cache_entries", "Values held; pinned are declared or subscribed to and never evicted."
	s.gauge(entries, entriesHelp, float64(st.Entries), "kind", "lru")
	s.gauge(entries, entriesHelp, float64(st.Pinned), "kind", "pinned")
	const bytes, bytesHelp = "secretagent_cache_bytes", "What the values held cost."
	s.gauge(bytes, bytesHelp, float64(st.Bytes), "kind", "lru")
	s.gauge(bytes, bytesHelp, float64(st.PinnedBytes), "kind", "pinned")
	s.gauge("secretagent_cache_entries_limit", "The limit of entries of kind lru.", float64(c.agent.config().Cache.MaxEntries))
	s.gauge("secretagent_cache_bytes_limit", "The limit of bytes of kind lru: cache.maxBytes, less where the memory limit asks for it.", float64(cacheBytes(c.agent.config())))
	s.gauge("secretagent_cache_negative_entries", "Remembered refusals, such as not found.", float64(st.Remembered))
	s.gauge("secretagent_cache_fetches_in_flight", "Calls to the upstream under way or in line.", float64(st.Flights))
	s.gauge("secretagent_cache_waiting_lookups", "Lookups that wait for one.", float64(st.Waiting))
	s.gauge("secretagent_cache_refreshes_scheduled", "Refreshes that are planned.", float64(st.Scheduled))
	s.gauge("secretagent_cache_subscriptions", "Live subscriptions.", float64(st.Subscriptions))
	s.counter("secretagent_cache_subscriptions_refused_total", "Subscriptions beyond the limit.", st.SubscriptionsRefused)
	s.gauge("secretagent_cache_upstream_outage", "1 while the upstream as a whole is taken to be down.", boolean(st.Outage != ""))
	s.gauge("secretagent_cache_clock_behind_seconds", "By how much the clock of this host is behind the newest time that the sealed cache or the upstream has told; 0 for less than a minute, and once the upstream has answered.",
		st.ClockBehind.Seconds())
	if c.agent.config().Cache.Sealed != nil {
		s.gauge("secretagent_cache_sealed_open", "1 while the sealed cache is in use, 0 when it was given up.", boolean(st.Sealed.Open))
		s.gauge("secretagent_cache_sealed_records", "Values in the sealed cache.", float64(st.Sealed.Records))
		s.gauge("secretagent_cache_sealed_bytes", "Size of the values in the sealed cache.", float64(st.Sealed.Bytes))
		s.gauge("secretagent_cache_sealed_pending", "Changes not yet written to the sealed cache.", float64(st.Sealed.Pending))
		s.counter("secretagent_cache_sealed_refused_total", "Records refused at start: damaged, exchanged or foreign.", uint64(st.Sealed.Refused))
		s.counter("secretagent_cache_sealed_too_old_total", "Values found at start that were too old to be served.", uint64(st.Sealed.TooOld))
		s.counter("secretagent_cache_sealed_rebuilt_total", "1 when the file found at start was damaged as a whole.", uint64(st.Sealed.Rebuilt))
		s.gauge("secretagent_cache_sealed_skipped", "Values for which there is no room in the sealed cache.", float64(st.Sealed.Skipped))
		s.counter("secretagent_cache_sealed_errors_total", "Failed writes of the sealed cache.", uint64(st.Sealed.Errors))
	}
	c.declared(s)
}

// declared shows the secrets that the configuration names, which bounds the series.
func (c collector) declared(s sink) {
	now := time.Now()
	for _, e := range c.agent.cache.Pinned() {
		ref := e.Ref.String()
		s.gauge("secretagent_secret_available", "1 while a value of the declared secret is held.", boolean(e.VersionID != ""), "secret", ref)
		s.gauge("secretagent_secret_fresh", "1 while the declared secret would be served without asking the upstream.", boolean(e.Fresh && e.VersionID != ""), "secret", ref)
		s.gauge("secretagent_secret_refresh_failures", "Failed refreshes of the declared secret in a row.", float64(e.Failures), "secret", ref)
		if !e.FetchedAt.IsZero() {
			s.gauge("secretagent_secret_age_seconds", "Time since the upstream last confirmed the declared secret.", e.Age.Seconds(), "secret", ref)
		}
		s.moment("secretagent_secret_served_until_timestamp_seconds", "When the declared secret stops being served unless the upstream answers before; there only while it does not.", e.ServedUntil, "secret", ref)
		if !e.NextRefresh.IsZero() {
			s.gauge("secretagent_secret_next_refresh_seconds", "Time until the declared secret is refreshed.", max(0, e.NextRefresh.Sub(now).Seconds()), "secret", ref)
		}
	}
}

func (c collector) files(s sink) {
	renders, checks, hooks := c.agent.renders.snapshot()
	s.counters("secretagent_render_renders_total", "Attempts to bring a rendered file up to date, by outcome.", "outcome", renders)
	s.counters("secretagent_render_checks_total", "Runs of checks of new content, by outcome.", "outcome", checks)
	s.counters("secretagent_render_hooks_total", "Runs of hooks, by outcome.", "outcome", hooks)
	targets := c.agent.renderer().Status()
	c.agent.renders.forget(targets)
	now := time.Now()
	for _, t := range targets {
		outOfOrder := 0.0
		if t.State != render.Current {
			// What does not fail was removed on purpose, or is not rendered yet.
			since := cmp.Or(c.agent.renders.failingSince(t.Path), t.ChangedAt, c.agent.began)
			outOfOrder = max(0, now.Sub(since).Seconds())
		}
		s.gauge("secretagent_render_target_in_order", "1 while the file or set is what the secrets say.", boolean(t.State == render.Current), "target", t.Path)
		s.gauge("secretagent_render_target_out_of_order_seconds", "Time since the file or set was last in order; 0 while it is.", outOfOrder, "target", t.Path)
		s.gauge("secretagent_render_target_hook_owed", "1 while the hook has not succeeded since the last change.", boolean(t.HookOwed), "target", t.Path)
	}
}

func (c collector) child(s sink) {
	if c.agent.child == nil {
		return
	}
	st := c.agent.child.Status()
	for _, state := range []child.State{child.Waiting, child.Running, child.Ended} {
		s.gauge("secretagent_child_state", "1 for the state that the application is in.", boolean(st.State == state), "state", string(state))
	}
	s.counter("secretagent_child_restarts_total", "Restarts because of changed secrets.", uint64(st.Restarts))
	s.counter("secretagent_child_signals_total", "Signals sent because of changed secrets.", uint64(st.Signals))
	s.gauge("secretagent_child_outdated", "1 while the application runs with other values than the current ones.", boolean(st.Outdated))
	s.gauge("secretagent_child_failing", "1 while the variables cannot be read or the application cannot be started.", boolean(st.Failing))
}

// agentItself shows what belongs to no part.
func (c collector) agentItself(s sink) {
	s.gauge("secretagent_ready", "1 when every declared secret is held and every file is in order.", boolean(c.agent.readiness().Ready))
	reloads := c.agent.reload.get()
	s.counters("secretagent_reloads_total", "Reloads of the configuration, by outcome.",
		"outcome", map[string]uint64{"succeeded": reloads.succeeded, "failed": reloads.failed})
	s.gauge("secretagent_reload_failing", "1 while the last reload has failed and the agent goes on with what it had.", boolean(reloads.err != nil))
}

// certificates shows when what the agent shows or trusts ends, where that is known.
func (c collector) certificates(s sink) {
	ends := func(name string, at time.Time) {
		s.moment("secretagent_certificate_expiry_timestamp_seconds", "When the certificate ends; of authorities, when the first of them does.", at, "certificate", name)
	}
	for _, ln := range c.agent.listeners() {
		own, clients := ln.expiry()
		ends(ln.part, own)
		ends(ln.part+"-client-ca", clients)
	}
	if cloud := c.agent.upstreamStatus().Alibaba; cloud != nil {
		ends("upstream-ca", cloud.CAExpires)
	}
}

// sink makes constant metrics. Labels are name and value in turn.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) counter(name, help string, n uint64, labels ...string) {
	s.send(prometheus.CounterValue, name, help, float64(n), labels)
}

// counters makes one counter for each value of a label.
func (s sink) counters(name, help, label string, values map[string]uint64) {
	for value, n := range values {
		s.counter(name, help, n, label, value)
	}
}

func (s sink) gauge(name, help string, v float64, labels ...string) {
	s.send(prometheus.GaugeValue, name, help, v, labels)
}

// moment makes a gauge of a time, and none of one that is unknown.
func (s sink) moment(name, help string, at time.Time, labels ...string) {
	if !at.IsZero() {
		s.gauge(name, help, seconds(at), labels...)
	}
}

func (s sink) send(kind prometheus.ValueType, name, help string, v float64, labels []string) {
	var names, values []string
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	s.ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
