// Package agent is the running agent: it builds every part from a checked configuration, owns
// their goroutines, and takes them down again in order.
//
//	a, err := agent.New(cfg, agent.Deps{Logger: logger, Version: version})
//	if err != nil { … }          // nothing is left open
//	err = a.Run(ctx)             // until ctx ends, or a part fails
//
// [New] opens everything that can fail, the listeners among them, but serves nothing: a taken
// port or an unreadable keyring is an error from New. [Agent.Run] starts the goroutines; the
// death of any of them ends all of them, visibly. It is the only package that knows which
// upstream was chosen.
//
// # The order of things
//
// The endpoint answers as soon as Run starts, before any secret was fetched: a lookup that
// comes early waits for its own fetch. Declared secrets are fetched at the same time; /ready
// says what is still missing. On the way down, running requests finish first, within a bound;
// a hook that runs is ended and stays owed; then the cache writes what it has not written, and
// the database closes last.
//
// # Reload
//
// [Agent.Reload] reads the configuration again, and so does the agent by itself when a file
// that it names changes. Everything that can fail comes first, then one switch. What lives on
// (backend, cache, endpoint, connections) is told its new settings; what does not (renderer,
// cloud client, listeners) is built anew beside the old and takes its place.
//
// # Logs
//
// [NewLogger] makes the log of a running agent: text for people or JSON, without a value, one
// line per event whatever texts are in it. The keys have one vocabulary, which the README
// lists; a test reads every log call of the source and compares. What fails again and again is
// summarised in one place, see repeats.go, so that the parts simply report each failure.
//
// # Design notes
//
// Parts count for themselves, and are read when somebody scrapes. A name that a client asks
// for never becomes a label, and codes that the service makes up are cut off at some number,
// so that nobody else decides how many series there are. In the status, a caller that may not
// read everything is shown itself alone among the callers: who else there is, and what they
// ask for, is not its business. Whoever may scrape sees the names of callers, declared secrets
// and targets, never a value; give Prometheus a caller of its own.
//
// Summaries are made by a handler between the loggers and the format, not where things fail.
// There are some thirty such places, in packages that know nothing of each other, and an outage
// shows in most of them at once. The price is that the handler must guess what lines belong
// together: level, part, message and code, so that a secret that is refused in the middle of
// an outage is told at once. Messages are constants for this reason.
//
// Spans are not exported to OpenTelemetry. Trace and span of the caller are in the lines, which
// costs nothing when there are none; the exporter and what it needs would be 140 packages more.
//
// When endpoint.callers are configured, they are everybody: the token of endpoint.tokenFile
// then opens nothing. The alternative, a master token beside the callers, would undo the least
// privilege that the callers are there for.
//
// The seed of the built-in backend never touches a secret that exists, not even one that is
// scheduled for deletion: it is there for demonstrations and tests, and must not undo what
// somebody did on purpose.
package agent
