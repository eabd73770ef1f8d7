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
// line per event whatever texts are in it. The keys have one vocabulary, which the topic logs
// lists; a test reads every log call of the source and compares. What fails again and again is
// summarised in one place, see logsummary.go, so that the parts simply report each failure.
//
// # Design notes
//
// Upstreams. An upstream is one interface, backend, and each kind of it has one file,
// upstream_KIND.go, and one case in kindOf. No other file knows which one was chosen.
//
// Rules. config owns the shape of agent.yaml, the defaults and the positions. Each part owns the
// rules of its options, in a Validate method. [Check] calls all of them, for "check", for
// "run" and for a reload, so that these three never disagree.
//
// Metrics. Parts count for themselves and are read at each scrape. A name that a client asks for
// never becomes a label, and codes that a service makes up are cut off at some number: the
// number of series is ours to decide. The series name callers, declared secrets and targets,
// never a value; give Prometheus a caller of its own.
//
// Status. A caller that may not read every secret sees itself alone among the callers.
//
// Log summaries are made by a handler between the loggers and the format, not where things fail:
// there are some thirty such places, in packages that know nothing of each other, and an outage
// shows in most of them at once. The handler takes lines with the same level, part, message and
// code for repetitions, so messages are constants.
//
// Spans are not exported to OpenTelemetry: trace and span of the caller are in the lines, and the
// exporter would bring 140 packages.
//
// Callers. With endpoint.callers, the token of endpoint.tokenFile opens nothing. A master token
// beside the callers would undo their least privilege.
//
// The seed never touches a secret that exists, not even one that is scheduled for deletion: it
// must not undo what an operator did on purpose.
package agent
