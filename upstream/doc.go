// Package upstream is the vocabulary of a Secrets Manager: what a secret, a version and a
// stage label are called, what can be asked of a backend, and which errors it answers with.
// Every other package of secretagent speaks in these terms; this one imports only the
// standard library.
//
// # The object model
//
// A secret is metadata plus versions plus stage labels. A version has a caller-chosen
// [VersionID], is written once and never modified. A [VersionStage] is a label that marks
// exactly one version; a version carries zero or more labels. [ACSCurrent] and [ACSPrevious]
// are built in: they move, they are never removed. A read that names neither version nor
// stage means [ACSCurrent].
//
//	ref, err := upstream.ParseSecretRef("app/db:ACSPrevious")
//	value, err := backend.GetSecretValue(ctx, ref)
//	if errors.Is(err, upstream.ErrNotFound) { … }
//
// # Errors
//
// Backends return an [*Error] that wraps one of the sentinels of errors.go. One table there
// ties each sentinel to its KMS code, HTTP status, retry class and exit code, and is read in
// both directions. Context errors pass through untouched.
//
// A failed read means that there is no value only when [Gone] says so, which it does of a closed
// list of codes. All else that is not the value that was asked for ([SecretValue.Answers]) is an
// [Outage] of that secret, or a mistake in the question; [Reason] is the code to show.
//
// # Secret bytes
//
// Secret bytes travel as [SecretData], which prints a placeholder however it is formatted.
// [SecretData.Reveal], [SecretData.RevealFields] and [SecretValue.RevealBytes] are the only ways to
// the bytes, so a search for Reveal lists every exit.
// A [SecretValue] is shared, not copied, once a backend has returned it: treat it as
// read-only.
//
// # Options
//
// Every part of the agent checks its own options in a Validate method, which returns
// [OptionErrors]: all problems at once, each with the key as agent.yaml spells it. New and Open
// call it too, so that what Validate accepts is what they accept.
//
// # Who caused a call
//
// The context of a call may carry a [Cause]: the request of a client that made it necessary,
// and the trace that this client is in. Backends add it to their log lines with [Cause.Attr],
// and pass the trace on where their protocol has a place for it.
package upstream
