package agent

import (
	"time"

	"secretagent/cache"
	"secretagent/upstream"
)

// HistoryEvent is something that happened to a secret since the agent started. The same thing
// several times in a row is one event, until the upstream answers again.
type HistoryEvent struct {
	// Kind is one of
	//
	//	version  the value of VersionId came into use
	//	gone     the upstream says that there is none, and why: Code
	//	failed   refreshes failed, last with Code
	//	stale    answers were stale, last because of Code
	//	lapsed   the value became too old to be served, and was dropped
	Kind      string
	VersionID upstream.VersionID `json:"VersionId,omitzero"`
	Code      string             `json:",omitzero"`
	First     time.Time
	Last      time.Time
	Count     int
}

// historyOf returns what a status tells of the events of a secret.
func historyOf(events []cache.Event) []HistoryEvent {
	var history []HistoryEvent
	for _, e := range events {
		history = append(history, HistoryEvent{
			Kind: string(e.Kind), VersionID: e.VersionID, Code: e.Code, First: e.First, Last: e.Last, Count: e.Count,
		})
	}
	return history
}
