package render

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

const (
	owedPrefix = "hook-owed-"
	owedSuffix = ".json"
)

// owedRecord is one file of the state folder: the hook of a target is owed if what is
// published there still is one of Stamps. It is written before a change is published, so that
// a kill right after the publish cannot lose the hook, and removed when the hook succeeded.
// Without the stamp, a kill right before the publish would run a hook that nothing changed
// for.
//
//	{"name": "/run/app/app.env", "stamps": ["64768:1311"]}
type owedRecord struct {
	Name   string   `json:"name"`
	Stamps []string `json:"stamps"`
}

// owedBook remembers across restarts which hooks are owed. Records are not synced: after a
// loss of power every process that a hook could tell starts anew anyway.
type owedBook struct {
	dir folder // without a path nothing is remembered

	mu  sync.Mutex
	seq map[string]uint64 // :: name of a target → number of its latest record
}

func newOwedBook(dir folder) *owedBook {
	return &owedBook{dir: dir, seq: map[string]uint64{}}
}

// recordName returns the name of the record of a target.
func recordName(target string) string {
	sum := sha256.Sum256([]byte(target))
	return owedPrefix + hex.EncodeToString(sum[:8]) + owedSuffix
}

// intend records that the hook of name is owed while one of stamps is what is published. It
// returns a number for forget.
func (b *owedBook) intend(name string, stamps ...string) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seq[name]++
	n := b.seq[name]
	if b.dir.path == "" {
		return n, nil
	}
	record, err := json.Marshal(owedRecord{Name: name, Stamps: stamps})
	if err != nil {
		return n, err
	}
	dir, err := b.dir.open(true)
	if err != nil {
		return n, err
	}
	defer dir.Close()
	final := recordName(name)
	temp := final + ".new"
	if err := dir.WriteFile(temp, append(record, '\n'), 0o600); err != nil {
		return n, err
	}
	return n, dir.Rename(temp, final)
}

// forget removes the record numbered seq. A later record stays.
func (b *owedBook) forget(name string, seq uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir.path == "" || b.seq[name] != seq {
		return nil
	}
	return inFolder(b.dir.open, func(dir *os.Root) error { return exists(dir.Remove(recordName(name))) })
}

// load returns the names that are owed a hook, each with the number for forget. stampOf
// returns what is published for a name, "" when that cannot be told, and false for a name that
// has no hook any more. Records that no longer hold are removed; so are unreadable ones, which
// a kill cannot leave.
func (b *owedBook) load(stampOf func(name string) (string, bool)) (map[string]uint64, error) {
	if b.dir.path == "" {
		return nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	owed := map[string]uint64{}
	return owed, inFolder(b.dir.open, func(dir *os.Root) error {
		entries, err := fs.ReadDir(dir.FS(), ".")
		problems := []error{err}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), owedPrefix) || !e.Type().IsRegular() {
				continue
			}
			var record owedRecord
			if strings.HasSuffix(e.Name(), owedSuffix) {
				text, err := dir.ReadFile(e.Name())
				if err != nil {
					problems = append(problems, err)
					continue
				}
				if err := json.Unmarshal(text, &record); err != nil {
					problems = append(problems, fmt.Errorf("%s is not a record of an owed hook; it is removed", filepath.Join(b.dir.path, e.Name())))
				}
			}
			if stamp, ok := stampOf(record.Name); ok && (stamp == "" || slices.Contains(record.Stamps, stamp)) {
				b.seq[record.Name]++
				owed[record.Name] = b.seq[record.Name]
				continue
			}
			problems = append(problems, exists(dir.Remove(e.Name())))
		}
		return errors.Join(problems...)
	})
}
