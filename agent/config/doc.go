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
// from the environment either: what the file says is what runs.
package config
