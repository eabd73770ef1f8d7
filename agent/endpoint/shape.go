package endpoint

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"secretagent/upstream"
)

// Format is the shape of a value in an answer. Every format carries the same bytes.
type Format uint8

const (
	// FormatKMS is the GetSecretValue response of Alibaba Cloud KMS.
	FormatKMS Format = iota

	// FormatAWS is the GetSecretValue response of AWS Secrets Manager: ARN, Name, VersionId,
	// SecretString, VersionStages as an array, CreatedDate as a number. Data of type binary
	// is SecretBinary: the base64 of its bytes, see FormatRaw. In requests AWSCURRENT and AWSPREVIOUS mean ACSCurrent and
	// ACSPrevious. The ARN is the one that was asked for; a name's leaves region and account empty, and
	// means the same as the name.
	FormatAWS

	// FormatVault is the KV v2 response of Vault. Data that is a JSON object becomes the map,
	// anything else {"value": "…"}. The version is a number there: that of version ids such as
	// 7 or v7, otherwise 0; custom_metadata has the id itself and its labels.
	FormatVault

	// FormatRaw is the bytes alone, as application/json, text/plain or
	// application/octet-stream. Those of a binary secret are what its base64 stands for; when
	// it is not base64 they are its data as it is.
	FormatRaw

	numFormats
)

const formatNames = "kms, aws, vault, raw"

var formats = [numFormats]string{"kms", "aws", "vault", "raw"}

// ParseFormat returns the format of that name: kms, aws, vault or raw.
func ParseFormat(name string) (Format, error) {
	if i := slices.Index(formats[:], name); i >= 0 {
		return Format(i), nil
	}
	return 0, errors.New("the format must be one of " + formatNames)
}

// fromAWSStage returns the KMS label that an AWS application means.
func fromAWSStage(stage string) string {
	switch stage {
	case "AWSCURRENT":
		return string(upstream.ACSCurrent)
	case "AWSPREVIOUS":
		return string(upstream.ACSPrevious)
	}
	return stage
}

// body is an encoded value. It is immutable, and overwritten when nobody needs it any more.
type body struct {
	contentType []byte
	data        []byte
}

// shape encodes v.
func shape(v *upstream.SecretValue, f Format) body {
	switch f {
	case FormatAWS:
		return body{contentTypeJSON, upstream.Erasable(shapeAWS(v))}
	case FormatVault:
		return body{contentTypeJSON, upstream.Erasable(shapeVault(v))}
	case FormatRaw:
		return body{contentTypeOf(v), rawBytes(v)}
	default:
		return body{contentTypeJSON, upstream.Erasable(upstream.GetSecretValueJSON(v))}
	}
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

func shapeAWS(v *upstream.SecretValue) []byte {
	out := struct {
		ARN           string
		Name          upstream.SecretName
		VersionID     upstream.VersionID `json:"VersionId"`
		SecretString  any                `json:",omitempty"` // nil in a binary secret
		SecretBinary  []byte             `json:",omitempty"`
		VersionStages []upstream.VersionStage
		CreatedDate   int64
	}{
		ARN:           cmp.Or(v.SecretName.Account(), "acs:kms::") + ":secret/" + string(v.SecretName.Name()),
		Name:          v.SecretName.Name(),
		VersionID:     v.VersionID,
		VersionStages: append([]upstream.VersionStage{}, v.VersionStages...), // never null
		CreatedDate:   v.CreateTime.Unix(),
	}
	if v.SecretDataType == upstream.DataTypeBinary {
		out.SecretBinary = v.RevealBytes()
	} else {
		out.SecretString = string(v.SecretData.Reveal())
	}
	return encode(&out)
}

func shapeVault(v *upstream.SecretValue) []byte {
	data := json.RawMessage(upstream.TrimBOM(v.SecretData.Reveal()))
	if !isJSON(data, '{') {
		data = encode(map[string]string{"value": string(v.SecretData.Reveal())})
	}
	stages := make([]string, len(v.VersionStages))
	for i, s := range v.VersionStages {
		stages[i] = string(s)
	}
	return encode(&struct {
		RequestID     string         `json:"request_id"`
		LeaseID       string         `json:"lease_id"`
		Renewable     bool           `json:"renewable"`
		LeaseDuration int            `json:"lease_duration"`
		Data          map[string]any `json:"data"`
		WrapInfo      *struct{}      `json:"wrap_info"`
		Warnings      []string       `json:"warnings"`
		Auth          *struct{}      `json:"auth"`
	}{
		RequestID: v.RequestID,
		Data: map[string]any{"data": data, "metadata": map[string]any{
			"created_time":    upstream.WireTime(v.CreateTime),
			"custom_metadata": map[string]string{"VersionId": string(v.VersionID), "VersionStages": strings.Join(stages, ",")},
			"deletion_time":   "",
			"destroyed":       false,
			"version":         vaultVersion(v.VersionID),
		}},
	})
}

// vaultVersion returns 7 for 7 and v7, and 0 for ids that are not numbers.
func vaultVersion(id upstream.VersionID) int {
	n, err := strconv.ParseUint(strings.TrimPrefix(string(id), "v"), 10, 31)
	if err != nil {
		return 0
	}
	return int(n)
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
