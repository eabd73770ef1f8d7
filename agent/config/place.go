package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Source is a configuration file and what the command line says beside it. Everything that reads one
// file the same way agrees on where the state of the agent lies; see the package page.
type Source struct {
	File string

	// StateDir is the state directory, of --state-dir; empty: found as the package page says.
	StateDir string

	// Keyring takes the place of every keyring that the file names, of --keyring; empty: none.
	Keyring string
}

const (
	stateVariable = "STATE_DIRECTORY"
	statePrefix   = "$" + stateVariable // at the beginning of a path
	stateSystem   = "/var/lib/secretagent"
	stateBeside   = "var" // the folder next to the file
)

// stateFiles are what the agent keeps in a state directory and would miss, by their defaults.
var stateFiles = []string{"data/secrets.db", "data/cache.db", "keys/keyring.json", "run/token"}

// folders are where paths of a configuration begin.
type folders struct {
	file  string // relative ones: the folder of the file
	state string // those that begin with $STATE_DIRECTORY
}

// find returns s with absolute paths, the state directory included, and where the paths of the file
// begin. With an error, these are what holds without the variable that is wrong.
func (s Source) find() (Source, folders, error) {
	file, err := filepath.Abs(s.File)
	if err != nil {
		return s, folders{}, err
	}
	in := folders{file: filepath.Dir(file)}
	if s.StateDir != "" {
		in.state, err = filepath.Abs(s.StateDir)
	} else {
		in.state, err = findState(in.file)
	}
	if s.Keyring != "" && err == nil {
		s.Keyring, err = filepath.Abs(s.Keyring)
	}
	return Source{file, in.state, s.Keyring}, in, err
}

// findState returns the state directory of a configuration in the folder dir.
func findState(dir string) (string, error) {
	beside := filepath.Join(dir, stateBeside)
	given, err := givenState()
	if given == "" && dir == filepath.Dir(fileSystem) {
		given = stateSystem
	}
	if given == "" || keepsState(beside) && !keepsState(given) {
		return beside, err
	}
	return given, err
}

// givenState returns the first folder of the variable STATE_DIRECTORY, if that is for this process:
// what a service starts inherits the variable, and must not write into the folder of the service.
func givenState() (string, error) {
	if pid := os.Getenv("SYSTEMD_EXEC_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return "", nil
	}
	first, _, _ := strings.Cut(os.Getenv(stateVariable), string(filepath.ListSeparator))
	if first != "" && !filepath.IsAbs(first) {
		return "", fmt.Errorf("the variable %s must begin with the absolute path of a folder", stateVariable)
	}
	return first, nil
}

// keepsState reports whether an agent has left something in dir. What this user may not look at
// counts: somebody keeps it there.
func keepsState(dir string) bool {
	for _, name := range stateFiles {
		if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name))); err == nil || errors.Is(err, fs.ErrPermission) {
			return true
		}
	}
	return false
}

// resolve returns path made absolute.
func (f folders) resolve(path string) (Path, error) {
	rest, ofState := strings.CutPrefix(path, statePrefix)
	switch {
	case ofState && (rest == "" || rest[0] == '/' || os.IsPathSeparator(rest[0])):
		return Path(filepath.Join(f.state, rest)), nil
	case strings.HasPrefix(path, "$"):
		return "", errors.New("nothing is expanded from the environment; " + statePrefix + "/ is the only beginning of its kind, ./$ that of a file with such a name")
	case !filepath.IsAbs(path):
		path = filepath.Join(f.file, path)
	}
	return Path(filepath.Clean(path)), nil
}
