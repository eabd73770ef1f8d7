// Package config reads agent.yaml into a typed, checked [Config].
//
//	cfg, err := config.Load("agent.yaml")
//	if problems, ok := errors.AsType[config.Problems](err); ok {
//		fmt.Fprint(os.Stderr, problems.Report())
//	}
//
// Everything deeper than this package sees typed values only: durations, sizes, modes and
// references are parsed, defaults are filled in, relative paths are resolved against the
// folder of the file, and what contradicts itself is refused. Loading reads one file and
// touches nothing else: whether a named file exists is found out by the part that opens it.
//
// A file with mistakes yields all of them at once, as [Problems]: each with line, column,
// key, what is wrong and what is allowed. Only a syntax error stands alone, because what
// follows it cannot be read. Unknown keys are mistakes. The agent runs with all of a file or
// with none of it. Clients of a running agent, health checks among them, need an address and a
// token only: [ReadReach] reads these whatever else is wrong.
//
// # The state directory
//
// What the file does not place (database, keyring, sealed cache, token, sockets, owed hooks) lies in
// the state directory, and a path in the file may begin with $STATE_DIRECTORY/ to lie there, too. It
// is the first of these:
//
//  1. --state-dir;
//  2. the first folder of the variable STATE_DIRECTORY, which systemd sets for StateDirectory= and
//     the image has in it, unless SYSTEMD_EXEC_PID says that it is meant for another process;
//  3. /var/lib/secretagent for a file in /etc/secretagent;
//  4. the folder var beside the file.
//
// In place of 2 and 3 it is the folder var beside the file where an agent has left files there and
// none in the other: an earlier version kept them there, and they must not seem lost. A reload
// stays with what the start has found.
//
// # Secrets
//
// Secrets are named by file, never written into the configuration. The one exception is the
// data of a seed, which exists for demonstrations and tests; it is an
// [upstream.SecretData] and prints a placeholder. Excerpts in error messages show
// a value only when its key is known and holds no secret; everything else reads as "…".
//
// # Design notes
//
// One declaration per key. The name, default, range and allowed values of a key are struct
// tags beside the field:
//
//	TTL time.Duration `yaml:"ttl" default:"5m" min:"1s"`
//
// The decoder, the "did you mean" of unknown keys, and the test that holds
// agent.example.yaml against the schema all read this one declaration. The tags are:
// yaml (the name; ",inline" for an embedded struct), default, min and max (for numbers,
// durations and sizes), enum (allowed values, separated by |), required (the key must be
// given), off ("off" or "" switches the feature off), path:"watch" (the agent reads this
// file, so a change of it matters), path:"write" (the agent writes there, and two of these may not
// be the same), show:"never" (the value may hold a secret). A wrong
// tag is found by a test, not by the compiler.
//
// The document is decoded by walking the syntax tree of goccy/go-yaml, because the decoder of
// that library stops at the first mistake. YAML's anchors, aliases, merge keys and tags are
// refused: they make a file that decides over secrets harder to review. Nothing is expanded
// from the environment either: what the file says is what runs. $STATE_DIRECTORY/ is no
// exception: it means the state directory, wherever that was found, and no other variable works.
//
// Where the state lies follows from the place of the file and not from the user: the agent, root at
// the command line and an application that looks for the token must find the same folder, and
// a developer who is root, as in most development containers, must not find that a clone has
// written to /var/lib. A read-only file system is no criterion either: state would move
// when a mount changes. The variable counts for the process alone that systemd has started, because
// what that starts in turn (the jobs of a CI service, a shell) inherits it and would write into the
// folder of somebody else's service. The price: a wrapper script that does not exec needs --state-dir.
package config
