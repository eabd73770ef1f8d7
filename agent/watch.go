package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"secretagent/upstream/keyfile"
)

const (
	// watchQuiet is how long files must be quiet before they are read: an editor writes in
	// steps, and certificate and key arrive one after the other.
	watchQuiet = 300 * time.Millisecond

	// watchPoll is how often the files are looked at in case no notice came, as on some
	// network file systems or when the system's limit of watches is reached.
	watchPoll = 30 * time.Second
)

// watchFiles reloads the agent when the configuration or a file that it names changes, until
// ctx ends. Folders are watched, not files: editors and Kubernetes replace files by renaming,
// and a file may not exist yet.
func (a *Agent) watchFiles(ctx context.Context) error {
	var events chan fsnotify.Event
	var failures chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		a.log.Warn("changes of files are noticed late", "retry_in", watchPoll, "err", err, "hint", "raise fs.inotify.max_user_instances, or reload with SIGHUP")
	} else {
		defer watcher.Close()
		events, failures = watcher.Events, watcher.Errors
	}
	var folders []string
	follow := func() {
		if watcher == nil {
			return
		}
		for _, file := range a.config().Files() {
			folder := filepath.Dir(file)
			if slices.Contains(folders, folder) {
				continue
			}
			if err := watcher.Add(folder); err != nil {
				a.log.Debug("folder is not watched", "path", folder, "err", err) // looked at by the poll
				continue
			}
			folders = append(folders, folder)
		}
	}
	follow()

	seen := a.seen
	look := func() {
		files := a.config().Files()
		now := fingerprint(files)
		if now == seen {
			return
		}
		// A file that fails is not tried again before it changes again. What changes during the
		// reload may have been read too early: it stays to be seen.
		seen = now
		if err := a.Reload(ctx); err == nil {
			follow()
			if named := a.config().Files(); !slices.Equal(named, files) {
				seen = fingerprint(named)
			}
		}
	}
	poll := time.NewTicker(watchPoll)
	defer poll.Stop()
	quiet := time.NewTimer(watchQuiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-events:
			// Other files of the folder, such as a log, may change all the time.
			if concerns(event.Name, a.config().Files()) {
				quiet.Reset(watchQuiet)
			}
		case err := <-failures:
			a.log.Warn("a change of a file may be noticed late", "err", err, "hint", "raise fs.inotify.max_queued_events, or reload with SIGHUP")
			quiet.Reset(watchQuiet)
		case <-quiet.C:
			look()
		case <-poll.C:
			look()
		}
	}
}

// concerns reports whether a change of path can change one of the files: it is one of them, or
// a name that Kubernetes exchanges in a folder of one, such as ..data.
func concerns(path string, files []string) bool {
	return strings.HasPrefix(filepath.Base(path), "..") || slices.Contains(files, path)
}

// fingerprint returns a text that changes when one of the files does. Symbolic links are
// followed, also those of folders on the way, as Kubernetes exchanges them.
func fingerprint(files []string) string {
	var b strings.Builder
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			fmt.Fprintf(&b, "%s missing\n", file)
			continue
		}
		real, _ := filepath.EvalSymlinks(file)
		fmt.Fprintf(&b, "%s %s %d %d %s %d\n", file, real, info.Size(), info.ModTime().UnixNano(), info.Mode(), keyfile.Owner(info))
	}
	return b.String()
}
