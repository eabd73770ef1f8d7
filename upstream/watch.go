package upstream

// A KMS API that an agent serves has one action of its own, outside the names of the service: a
// long poll that tells of changes. Package kmsserver describes it, and package kms asks for it
// where a server has said that it is there.
const (
	// WatchAction is the action. Whoever may call GetSecretValue may call it.
	WatchAction = "x-secretagent-watch"

	// WatchHeader is on the answers to reads of a server that has the action. It holds the cursor
	// from which to watch so that no change after the read is missed.
	WatchHeader = "x-secretagent-watch"
)

// AnySecret stands for all secrets where a change is announced: any of them may have changed.
const AnySecret SecretName = ""

// WatchAnswer is the answer to a watch.
type WatchAnswer struct {
	Cursor    string       // from which to go on
	Changed   []SecretName // since the cursor of the request, as far as the caller may read them
	Missed    bool         // there may be changes that Changed does not hold
	RequestID string       `json:"RequestId"`
}
