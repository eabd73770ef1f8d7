package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"unicode/utf8"

	"secretagent/upstream"
)

// Format is the shape of a value in an answer. Every format carries the same bytes.
type Format uint8

const (
	// FormatKMS is the GetSecretValue response of Alibaba Cloud KMS.
	FormatKMS Format = iota + 1 // zero: that of who is asked next, see [Server.formatOf]

	// FormatAWS is what the AWS agent answers: ARN, Name, VersionId, SecretString, VersionStages as
	// an array, CreatedDate as a string of seconds. Data of type binary is SecretBinary: the base64
	// of its bytes, see FormatRaw. ACSCurrent and ACSPrevious are AWSCURRENT and AWSPREVIOUS, in
	// requests as well; other labels keep their names. An ARN of AWS Secrets Manager means the name
	// in it, whatever its region and account, and that of a value can be asked for again. That of a
	// secret of another account remains an ARN of KMS. Errors have "__type" and "message", or are
	// plain text, with the statuses of the AWS agent.
	FormatAWS

	// FormatVault is the KV v2 response of Vault. Data that is a JSON object becomes the map,
	// anything else {"value": "…"}. The version is a number there: that of version ids such as
	// 7 or v7, otherwise 0; custom_metadata has the id itself and its labels.
	FormatVault

	// FormatRaw is the bytes alone, as application/json, text/plain or
	// application/octet-stream. Those of a binary secret are what its base64 stands for; when
	// it is not base64 they are its data as it is.
	FormatRaw

	// formatParameter is what the Lambda extension answers of a parameter.
	formatParameter
	formatKV1 // that of Vault's KV version 1, which only a path can ask for

	numFormats
)

// shape is what answers of one format look like.
type shape struct {
	name    string // in format=; empty: only a route asks for it
	value   func(*upstream.SecretValue) body
	failure func(*conn, *failure) (status int, b body)
}

// shapes are those of the formats.
var shapes = [numFormats]shape{
	FormatKMS:   {name: "kms", value: valueKMS, failure: failureKMS},
	FormatAWS:   {name: "aws", value: valueAWS, failure: failureAWS},
	FormatVault: {name: "vault", value: valueVault, failure: failureVault},
	FormatRaw:   {name: "raw", value: valueRaw, failure: failureKMS},

	formatParameter: {value: valueParameter, failure: failureParameter},
	formatKV1:       {value: valueKV1, failure: failureVault},
}

const formatNames = "kms, aws, vault, raw"

// ParseFormat returns the format of that name: kms, aws, vault or raw.
func ParseFormat(name string) (Format, error) {
	if i := slices.IndexFunc(shapes[:], func(s shape) bool { return s.name == name }); i >= 0 && name != "" {
		return Format(i), nil
	}
	return 0, errors.New("the format must be one of " + formatNames)
}

// valid reports whether f is zero or a format that a configuration can choose.
func (f Format) valid() bool { return f == 0 || f < numFormats && shapes[f].name != "" }

// body is an encoded value. It is immutable, and overwritten when nobody needs it any more.
type body struct {
	contentType []byte
	data        []byte
}

func valueKMS(v *upstream.SecretValue) body {
	return body{contentTypeJSON, upstream.Erasable(upstream.GetSecretValueJSON(v))}
}

func valueRaw(v *upstream.SecretValue) body { return body{contentTypeOf(v), rawBytes(v)} }

// failureKMS is an error as the KMS API has it. Two members more are for clients of Vault that
// asked at a path which is none of Vault's: without them, Go's takes the others for a secret.
func failureKMS(c *conn, f *failure) (status int, b body) {
	errs := []string{}
	if f.status != http.StatusNotFound {
		errs = append(errs, f.message)
	}
	return f.status, body{contentTypeJSON, encode(struct {
		Code, Message, RequestId string
		ID                       string   `json:"request_id"`
		Errors                   []string `json:"errors"`
	}{f.code, f.message, string(c.id[:]), string(c.id[:]), errs})}
}

// rawBytes returns the bytes of v: the memory of the value itself where they are no others.
func rawBytes(v *upstream.SecretValue) []byte {
	if v.SecretDataType == upstream.DataTypeBinary {
		if decoded, ok := upstream.DecodeBase64(v.SecretData.Reveal()); ok {
			return upstream.Erasable(decoded)
		}
	}
	return v.SecretData.Reveal()
}

func contentTypeOf(v *upstream.SecretValue) []byte {
	data := v.SecretData.Reveal()
	switch {
	case v.SecretDataType == upstream.DataTypeBinary || !utf8.Valid(data):
		return contentTypeBinary
	case isJSON(data, '{') || isJSON(data, '['):
		return contentTypeJSON
	default:
		return contentTypeText
	}
}

// isJSON reports whether data is one JSON text that opens with first.
func isJSON(data []byte, first byte) bool {
	data = bytes.TrimLeft(upstream.TrimBOM(data), " \t\r\n")
	return len(data) > 0 && data[0] == first && json.Valid(data)
}

// encode returns v as JSON without HTML escapes, ended by a newline. It is called with types
// that always encode.
func encode(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
	return buf.Bytes()
}

// fieldOf returns a secret whose whole data is one field of another, which must be a JSON object.
// It returns upstream.ErrNoField or upstream.ErrNullField when there is no text to answer with.
func fieldOf(v *upstream.SecretValue, field string) (*upstream.SecretValue, error) {
	fields, err := v.SecretData.RevealFields()
	if err != nil {
		return nil, upstream.InvalidParameter("field", err.Error())
	}
	text, err := fields.Text(field)
	if err != nil {
		return nil, err
	}
	part := *v
	part.SecretData = upstream.NewSecretData(text)
	part.SecretDataType = upstream.DataTypeText
	return &part, nil
}
