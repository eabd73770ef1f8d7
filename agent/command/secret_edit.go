package command

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/upstream"
)

func (a *app) secretEditCommand() *cobra.Command {
	var (
		out output
		id  string
		yes bool
	)
	cmd := &cobra.Command{
		Use:   "edit NAME",
		Short: "Edit the current value of a secret, and put the result as a new version",
		Long: `Open the current value of a secret in $VISUAL or $EDITOR, and put what was saved as a new version,
which gets ACSCurrent. Nothing is put when nothing has changed, and when another version has become
current meanwhile.

The value lies in a file that only this user can read, in a folder of its own that is kept in memory
and removed afterwards: with what the editor leaves there, such as swap files. What an editor keeps
elsewhere, such as a history, and what the system swaps to disk, is theirs. SIGTERM and SIGHUP end
the editor and remove the folder. SIGKILL leaves it, secretagent-edit-* in $XDG_RUNTIME_DIR or
/dev/shm, until the machine starts again. An end of line that the editor adds after a value without
one is taken away again.`,
		Example: `  EDITOR=nano secretagent secret edit demo/db
  secretagent secret edit demo/db --version-id v3`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&id, "version-id", "", "`id` of the new version (default from the time)")
	cmd.Flags().BoolVar(&yes, "yes", false, "put a value that is no JSON any more without asking")
	cmd.RunE = a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
		version, err := (&valueFlags{id: id}).versionID(time.Now())
		if err != nil {
			return err
		}
		ref := upstream.SecretRef{SecretName: name}
		return a.withManager(ctx, func(m upstream.Manager) error {
			old, err := m.GetSecretValue(ctx, ref)
			switch {
			case errors.Is(err, upstream.ErrNotFound):
				return withHint(err, "make it with: secretagent secret create %s", name)
			case err != nil:
				return err
			case old.SecretDataType == upstream.DataTypeBinary:
				return usagef("%s is binary: replace it with secretagent secret put %s --data-type binary --data-file FILE", name, name)
			}
			value, err := a.edited(old.SecretData.Reveal())
			switch {
			case err != nil:
				return err
			case value == nil:
				a.printf("nothing has changed, nothing was put")
				return nil
			case json.Valid(old.SecretData.Reveal()) && !json.Valid(value) && !yes:
				if err := a.confirm("The value was JSON and is none any more. Put it all the same?", "--yes"); err != nil {
					return err
				}
			}
			if now, err := m.GetSecretValue(ctx, ref); err != nil {
				return err
			} else if now.VersionID != old.VersionID {
				return fmt.Errorf("nothing was put: meanwhile version %s has become current in place of %s", now.VersionID, old.VersionID)
			}
			made, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{
				SecretName: name, VersionID: version, SecretData: upstream.NewSecretData(value), SecretDataType: old.SecretDataType,
			})
			if err != nil {
				return err
			}
			return a.printVersion(&out, name, made)
		})
	})
	return out.of(cmd)
}

// edited returns what the user makes of value; nil when that is the same.
func (a *app) edited(value []byte) ([]byte, error) {
	folder, err := memoryFolder()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	name := "value.txt"
	if json.Valid(value) {
		name = "value.json" // editors colour and check it
	}
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, value, 0o600); err != nil {
		return nil, err
	}
	if err := a.runEditor(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path) // by its path: editors may write a new file and rename it
	if err != nil {
		return nil, fmt.Errorf("the editor has left no file: %w", err)
	}
	defer f.Close()
	after, err := io.ReadAll(io.LimitReader(f, upstream.MaxSecretDataLen+2))
	if err != nil {
		return nil, err
	}
	if !bytes.HasSuffix(value, []byte("\n")) {
		after = bytes.TrimSuffix(after, []byte("\n"))
	}
	switch {
	case bytes.Equal(value, after):
		return nil, nil
	case len(after) == 0:
		return nil, errors.New("the value is empty now: nothing was put")
	case len(after) > upstream.MaxSecretDataLen:
		return nil, usagef("the value is larger than %d bytes: nothing was put", upstream.MaxSecretDataLen)
	}
	return after, nil
}

// memoryFolder makes a folder of our own that is kept in memory.
func memoryFolder() (string, error) {
	for _, parent := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm"} {
		if parent != "" && agent.InMemory(parent) {
			if folder, err := os.MkdirTemp(parent, "secretagent-edit-"); err == nil { // 0700
				return folder, nil
			}
		}
	}
	return "", withHint(errors.New("there is no folder that is kept in memory, neither $XDG_RUNTIME_DIR nor /dev/shm: a value is not written to a disk"),
		"secretagent secret put NAME asks for a value on the terminal, or reads a pipe")
}

// runEditor opens the file at path in the editor of the user and waits for its end. Ctrl-C is the editor's to judge;
// with SIGTERM and SIGHUP it is asked to end as well, so that the file is removed in any case.
func (a *app) runEditor(path string) error {
	words := strings.Fields(cmp.Or(strings.TrimSpace(a.Getenv("VISUAL")), strings.TrimSpace(a.Getenv("EDITOR")), "vi"))
	editor := exec.Command(words[0], append(words[1:], path)...)
	editor.Stdin, editor.Stdout, editor.Stderr = a.Stdin, os.Stderr, os.Stderr // our standard output carries the answer
	if f, ok := a.Stdin.(*os.File); ok && isTerminal(f) {
		editor.Stdout = f // which editors draw on
	}
	arrived := make(chan os.Signal, 4)
	signal.Notify(arrived, os.Interrupt, terminate, hangup)
	defer signal.Stop(arrived)
	if err := editor.Start(); err != nil {
		return withHint(fmt.Errorf("the editor cannot be started: %w", err), "name one with EDITOR")
	}
	ended := make(chan error, 1)
	go func() { ended <- editor.Wait() }()
	stopped := false
	for {
		select {
		case sig := <-arrived:
			if sig != os.Interrupt {
				stopped = true
				_ = editor.Process.Signal(syscall.SIGTERM)
			}
		case err := <-ended:
			switch {
			case stopped:
				return errors.New("stopped: nothing was put")
			case err != nil:
				return fmt.Errorf("the editor failed, nothing was put: %w", err)
			}
			return nil
		}
	}
}
