//go:build unix

package command

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTheJournalIsRecognised: only the stream that the variable names is the journal.
func TestTheJournalIsRecognised(t *testing.T) {
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	journal, other := open("journal"), open("other")
	id := fileID(journal)
	if id == "" || id == fileID(other) {
		t.Fatalf("ids %q and %q", id, fileID(other))
	}
	if !isJournal(journal, id) || isJournal(other, id) || isJournal(journal, "") || isJournal(nil, id) || isJournal(journal, "8:0") {
		t.Error("another stream is taken for the journal, or the journal for another")
	}
}
