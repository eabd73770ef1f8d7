package rotation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"secretagent/upstream"
)

// dataType returns the type of the value that follows current: its own, unless it is drawn.
func (j *job) dataType(current *upstream.SecretValue) string {
	if j.New.Command != nil {
		return current.SecretDataType
	}
	return upstream.DataTypeText
}

// make returns the value that follows current.
func (j *job) make(ctx context.Context, current *upstream.SecretValue) (upstream.SecretData, error) {
	if j.New.Command != nil {
		return j.makeByCommand(ctx, current)
	}
	password, err := j.New.Password.Draw()
	if err != nil {
		return upstream.SecretData{}, err
	}
	if j.New.Password.Field == "" {
		return password, nil
	}
	set := map[string]string{j.New.Password.Field: string(password.Reveal())}
	if pair := j.New.Pair; pair != nil {
		user, err := account(current, pair)
		if err != nil {
			return upstream.SecretData{}, err
		}
		set[pair.Field] = pair.Users[(slices.Index(pair.Users, user)+1)%len(pair.Users)]
	}
	return withFields(current.SecretData, set)
}

func (j *job) makeByCommand(ctx context.Context, current *upstream.SecretValue) (upstream.SecretData, error) {
	none := upstream.SecretData{}
	answer, err := j.execute(ctx, Execution{
		Command: *j.New.Command, Input: slices.Clone(current.SecretData.Reveal()),
		Answer: upstream.MaxSecretDataLen + 2, Hide: []upstream.SecretValue{*current},
	})
	if err != nil {
		return none, err
	}
	value := bytes.TrimSuffix(bytes.TrimSuffix(answer, []byte("\n")), []byte("\r"))
	switch {
	case len(value) == 0:
		return none, errors.New("the command has printed nothing")
	case len(value) > upstream.MaxSecretDataLen:
		return none, fmt.Errorf("the command has printed more than %d bytes", upstream.MaxSecretDataLen)
	case !utf8.Valid(value):
		return none, errors.New("what the command has printed is not UTF-8 text, which the KMS API cannot carry")
	}
	if _, ok := upstream.DecodeBase64(value); !ok && current.SecretDataType == upstream.DataTypeBinary {
		return none, errors.New("the secret is binary, so the command must print base64, which is what it is given")
	}
	return upstream.NewSecretData(slices.Clone(value)), nil
}

// account returns which of the accounts of the pair a value is about.
func account(value *upstream.SecretValue, pair *Pair) (string, error) {
	fields, err := value.SecretData.RevealFields()
	if err != nil {
		return "", fmt.Errorf("version %s: %w", value.VersionID, err)
	}
	text, err := fields.Text(pair.Field)
	if err != nil {
		return "", fmt.Errorf("version %s: field %q: %w", value.VersionID, pair.Field, err)
	}
	if !slices.Contains(pair.Users, string(text)) {
		return "", fmt.Errorf("version %s: field %q is none of the accounts of new.pair.users", value.VersionID, pair.Field)
	}
	return string(text), nil
}

// withFields returns the JSON object with some of its fields replaced by texts, or added at its
// end. The others stay as they are spelled, in their order.
func withFields(data upstream.SecretData, set map[string]string) (upstream.SecretData, error) {
	old, err := data.RevealFields()
	if err != nil {
		return upstream.SecretData{}, err
	}
	text, _ := upstream.JSONText(data.Reveal()) // cannot fail: it was read before
	decoder := json.NewDecoder(bytes.NewReader(text))
	_, _ = decoder.Token() // the brace
	var names []string
	for decoder.More() {
		name, _ := decoder.Token()
		var value json.RawMessage
		_ = decoder.Decode(&value)
		if name := name.(string); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for name := range set {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var b bytes.Buffer
	quote := func(text string) {
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(text)
		b.Truncate(b.Len() - 1) // the newline
	}
	for i, name := range names {
		b.WriteByte("{,"[min(i, 1)])
		quote(name)
		b.WriteByte(':')
		if text, ok := set[name]; ok {
			quote(text)
		} else {
			b.Write(old[name])
		}
	}
	b.WriteByte('}')
	if b.Len() > upstream.MaxSecretDataLen {
		return upstream.SecretData{}, fmt.Errorf("the next value is larger than %d bytes", upstream.MaxSecretDataLen)
	}
	return upstream.NewSecretData(b.Bytes()), nil
}
