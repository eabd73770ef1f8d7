package command

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"secretagent/upstream"
)

// valueFlags are the flags of a verb that takes the value of a new version.
type valueFlags struct {
	cmd      *cobra.Command
	id       string
	data     string
	file     string
	dataType string
}

func newValueFlags(cmd *cobra.Command, idUsage string) *valueFlags {
	f := &valueFlags{cmd: cmd}
	cmd.Flags().StringVar(&f.id, "version-id", "", idUsage)
	cmd.Flags().StringVar(&f.data, "data", "", "the `value` itself; other users can see it in the process list")
	cmd.Flags().StringVar(&f.file, "data-file", "", "`file` with the value, byte by byte; - for standard input")
	cmd.Flags().StringVar(&f.dataType, "data-type", upstream.DataTypeText, "`type` of the value: text, or binary, which is stored as base64 and encoded here where it is not yet")
	return f
}

// versionID returns the id that was given, or one made from the time.
func (f *valueFlags) versionID(now time.Time) (upstream.VersionID, error) {
	if f.id == "" {
		return upstream.VersionID(now.UTC().Format("20060102T150405.000Z")), nil
	}
	id := upstream.VersionID(f.id)
	if err := id.Validate(); err != nil {
		return "", usageError{fmt.Errorf("--version-id: %w", err)}
	}
	return id, nil
}

// read returns the value. Nothing is read when the flags contradict each other.
func (f *valueFlags) read(a *app) (upstream.SecretData, error) {
	byFlag, byFile := f.cmd.Flags().Changed("data"), f.cmd.Flags().Changed("data-file")
	switch {
	case byFlag && byFile:
		return upstream.SecretData{}, usagef("--data and --data-file exclude each other")
	case f.dataType != upstream.DataTypeText && f.dataType != upstream.DataTypeBinary:
		return upstream.SecretData{}, usagef("--data-type must be text or binary")
	}
	value, source := []byte(f.data), "--data"
	if !byFlag && !byFile && isTerminal(a.Stdin) {
		var err error
		if value, err = a.askValue(); err != nil {
			return upstream.SecretData{}, err
		}
		source = "the terminal"
	} else if byFlag {
		a.warningf("--data shows in the process list and in the history of the shell: prefer --data-file")
	} else {
		var err error
		if value, source, err = a.readInput("value", cmp.Or(f.file, "-"), upstream.MaxSecretDataLen); err != nil {
			return upstream.SecretData{}, err
		}
	}
	most := upstream.MaxSecretDataLen
	if f.dataType == upstream.DataTypeBinary && len(value) > 0 {
		if _, encoded := upstream.DecodeBase64(value); encoded {
			a.printf("%s: the value is base64 already and stored as it is", source)
		} else {
			value = base64.StdEncoding.AppendEncode(nil, value)
			most = base64.StdEncoding.DecodedLen(most)
		}
	}
	switch {
	case len(value) == 0:
		return upstream.SecretData{}, usagef("%s: the value is empty", source)
	case len(value) > upstream.MaxSecretDataLen:
		return upstream.SecretData{}, usagef("%s: the value is larger than %d bytes", source, most)
	case !utf8.Valid(value):
		return upstream.SecretData{}, withHint(usagef("%s: the value is not UTF-8 text, which the KMS API cannot carry", source),
			"store bytes with --data-type binary")
	}
	return upstream.NewSecretData(value), nil
}

// askValue asks for a value on the terminal, where it is not shown: twice, since nobody sees what was typed.
func (a *app) askValue() ([]byte, error) {
	in, ok := a.Stdin.(*os.File)
	if !ok {
		return nil, usagef("there is no terminal to ask on: give --data-file FILE")
	}
	var typed [2][]byte
	for i, question := range []string{"Value (it is not shown): ", "Once more: "} {
		fmt.Fprint(a.terminal, question)
		text, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(a.terminal)
		if err != nil {
			return nil, fmt.Errorf("read the value: %w", err)
		}
		typed[i] = text
	}
	if !bytes.Equal(typed[0], typed[1]) {
		return nil, usagef("the two values are not the same: nothing was put")
	}
	return typed[0], nil
}

// readInput returns the content of a file, of standard input for "-", and what to call it in
// messages: of more than most bytes, one byte more.
func (a *app) readInput(what, path string, most int64) (content []byte, source string, err error) {
	in, source := a.Stdin, "standard input"
	if path != "-" {
		source = path
		file, err := os.Open(path)
		if err != nil {
			return nil, "", usageError{err}
		}
		defer file.Close()
		in = file
	} else if isTerminal(in) {
		a.printf("reading the %s from the terminal, where it can be seen; end it with Ctrl-D", what)
	}
	content, err = io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", source, err)
	}
	return content, source, nil
}

// fieldOf returns one field of a JSON object as text. What it does not have is not found.
func fieldOf(ref upstream.SecretRef, data upstream.SecretData, field string) ([]byte, error) {
	fields, err := data.RevealFields()
	message := "the value is no JSON object, so it has no fields"
	switch {
	case errors.Is(err, upstream.ErrLoneSurrogate):
		message = "no field can be read: " + err.Error()
	case err == nil:
		text, err := fields.Text(field)
		switch {
		case err == nil:
			return text, nil
		case errors.Is(err, upstream.ErrNullField):
			message = fmt.Sprintf("the field %q is null", field)
		default:
			message = fmt.Sprintf("there is no field %q in the value", field)
		}
	}
	return nil, &upstream.Error{Ref: ref, Message: message, Err: upstream.ErrNotFound}
}
