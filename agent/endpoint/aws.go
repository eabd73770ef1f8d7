package endpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"

	"secretagent/upstream"
)

// This file is the family of the AWS Secrets Manager Agent, which the Lambda extension belongs
// to: how its applications name secrets and labels, and how its values and errors look.

// routesAWS are the paths of the Lambda extension beside those of the AWS agent. Its
// documentation has both spellings.
var routesAWS = map[string]*route{
	"/systemsmanager/parameters/get":  routeParameter,
	"/systemsmanager/parameters/get/": routeParameter,
}

var routeParameter = &route{op: "GetSecretValue", params: paramName | paramVersion | paramLabel | paramDecryption, format: formatParameter, handle: (*Server).get}

// fromAWSStage returns the label that an AWS application means.
func fromAWSStage(stage string) string {
	switch stage {
	case "AWSCURRENT":
		return string(upstream.ACSCurrent)
	case "AWSPREVIOUS":
		return string(upstream.ACSPrevious)
	}
	return stage
}

// toAWSStage is the inverse of fromAWSStage.
func toAWSStage(stage upstream.VersionStage) string {
	switch stage {
	case upstream.ACSCurrent:
		return "AWSCURRENT"
	case upstream.ACSPrevious:
		return "AWSPREVIOUS"
	}
	return string(stage)
}

// nameInARN returns the name of the secret in an ARN of AWS Secrets Manager; other ids are
// returned as they are. An ARN ends with a dash and six characters that AWS has added to the
// name. They are not part of it, nor is a name's own end of that form in an ARN without them: AWS
// asks to avoid such names, because it cannot tell them apart either. Region and account mean
// nothing here.
func nameInARN(id string) string {
	resource, ok := cutARN(id, ":secretsmanager:", ":secret:")
	if n := len(resource) - 7; ok && n > 0 && resource[n] == '-' && alphanumeric(resource[n+1:]) {
		return resource[:n]
	}
	return resource
}

// setParameter makes the name of a secret of that of a parameter of Parameter Store. Names of
// parameters begin with a slash as soon as they contain one. Those of secrets do not: the first
// slash is left out. What follows a colon is a version when it is a number, and otherwise a label.
func (q *query) setParameter() error {
	q.id, _ = cutARN(q.id, ":ssm:", ":parameter")
	q.id = strings.TrimPrefix(q.id, "/")
	if i := strings.LastIndexByte(q.id, ':'); i >= 0 && i+1 < len(q.id) && strings.Trim(q.id[i+1:], "0123456789") == "" {
		if q.ref.VersionID != "" {
			return upstream.InvalidParameter("version", "the name has a version already; leave one of them out")
		}
		number := q.id[i+1:]
		q.id = q.id[:i]
		return q.setNumber(number)
	}
	return nil
}

// cutARN returns what stands behind the mark in an ARN of AWS, of any partition; ok is false, and
// the id is returned, for what is no ARN of that service.
func cutARN(id, service, mark string) (resource string, ok bool) {
	if !strings.HasPrefix(id, "arn:aws") {
		return id, false
	}
	if _, rest, found := strings.Cut(id, service); found {
		if _, resource, found := strings.Cut(rest, mark); found {
			return resource, true
		}
	}
	return id, false
}

func alphanumeric(s string) bool {
	for i := range len(s) {
		if c := s[i] | 0x20; (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') {
			return false
		}
	}
	return true
}

// arnOf returns the ARN of a value: for AWS, one that [nameInARN] takes back to the name, without
// region and account. The ARN of a secret of another account stays what it is: without its
// account it would mean another secret.
func arnOf(v *upstream.SecretValue) string {
	name := string(v.SecretName.Name())
	if account := v.SecretName.Account(); account != "" {
		return account + ":secret/" + name
	}
	sum := sha256.Sum256([]byte(name))
	return "arn:aws:secretsmanager:::secret:" + name + "-" + hex.EncodeToString(sum[:3])
}

func valueAWS(v *upstream.SecretValue) body {
	out := struct {
		ARN           string
		Name          upstream.SecretName
		VersionID     upstream.VersionID `json:"VersionId"`
		SecretString  *string            `json:",omitempty"`
		SecretBinary  *[]byte            `json:",omitempty"`
		VersionStages []string
		CreatedDate   string
	}{
		ARN:           arnOf(v),
		Name:          v.SecretName.Name(),
		VersionID:     v.VersionID,
		VersionStages: make([]string, len(v.VersionStages)), // never null
		CreatedDate:   strconv.FormatFloat(float64(v.CreateTime.UnixMilli())/1e3, 'f', -1, 64),
	}
	for i, stage := range v.VersionStages {
		out.VersionStages[i] = toAWSStage(stage)
	}
	if v.SecretDataType == upstream.DataTypeBinary {
		out.SecretBinary = new(append([]byte{}, v.RevealBytes()...)) // never null
	} else {
		out.SecretString = new(string(v.SecretData.Reveal()))
	}
	return bodyAWS(&out)
}

func valueParameter(v *upstream.SecretValue) body {
	type parameter struct {
		ARN, DataType, LastModifiedDate, Name string
		Selector, SourceResult                *string
		Type, Value                           string
		Version                               int
	}
	name := string(v.SecretName.Name())
	path := "/" + strings.TrimPrefix(name, "/")
	if strings.Contains(name, "/") {
		name = path
	}
	arn := "arn:aws:ssm:::parameter" + path
	if v.SecretName.Account() != "" {
		arn = arnOf(v)
	}
	return bodyAWS(&struct {
		Parameter      parameter
		ResultMetadata struct{}
	}{Parameter: parameter{
		ARN: arn, DataType: "text", LastModifiedDate: upstream.WireTime(v.CreateTime), Name: name,
		Type: "SecureString", Value: string(v.SecretData.Reveal()), Version: vaultVersion(v.VersionID),
	}})
}

// bodyAWS encodes a value; bodies of the AWS agent end without a newline.
func bodyAWS(v any) body {
	return body{contentTypeJSON, upstream.Erasable(bytes.TrimSuffix(encode(v), []byte("\n")))}
}

// refusalsAWS are what the AWS agent answers in place of some of our refusals: plain text.
var refusalsAWS = map[*refusal]struct {
	status int
	text   string
}{
	tokenMissing:       {http.StatusForbidden, "Bad Token"},
	tokenInvalid:       {http.StatusForbidden, "Bad Token"},
	peerNotAllowed:     {http.StatusForbidden, "Bad Token"},
	forwardedRequest:   {http.StatusBadRequest, "Forwarded"},
	methodNotAllowed:   {http.StatusMethodNotAllowed, "Not allowed"},
	pathNotFound:       {http.StatusNotFound, "Not found"},
	tooManyConnections: {http.StatusTooManyRequests, "Connection limit exceeded"},
}

// failureAWS is an error as the AWS agent has it: plain text of its own, or a type and message of
// Secrets Manager with the status 400 for everything that is not a fault of a server.
func failureAWS(_ *conn, f *failure) (status int, b body) {
	if f.aws != "" {
		return http.StatusBadRequest, body{contentTypeText, []byte(f.aws)}
	}
	if r, ok := refusalsAWS[f.refusal]; ok {
		return r.status, body{contentTypeText, []byte(r.text)}
	}
	status, kind, message := typeAWS(f)
	return status, body{contentTypeJSON, exceptionAWS(kind, message)}
}

// failureParameter is failureAWS with the words of Parameter Store for what is not there.
func failureParameter(c *conn, f *failure) (status int, b body) {
	if f.refusal == allowed && f.status == http.StatusNotFound {
		return http.StatusBadRequest, body{contentTypeJSON, exceptionAWS("ParameterNotFound", "")}
	}
	return failureAWS(c, f)
}

// typeAWS returns status, type and message of an error that the AWS agent has from Secrets
// Manager. What has no counterpart there keeps our code and status.
func typeAWS(f *failure) (status int, kind, message string) {
	switch f.refusal {
	case allowed:
	case nameNotAllowed:
		return http.StatusBadRequest, "AccessDeniedException", f.message
	case fieldNotFound:
		return http.StatusBadRequest, "ResourceNotFoundException", f.message
	case upstreamTimeout:
		return http.StatusGatewayTimeout, "TimeoutError", "Timeout"
	case internalFailure:
		return http.StatusInternalServerError, "InternalFailure", ""
	default:
		return f.status, f.code, f.message
	}
	switch {
	case f.defect:
		return http.StatusInternalServerError, "InternalFailure", ""
	case f.unreached:
		return http.StatusBadGateway, "ConnectionError", f.message
	case f.code == upstream.Code(upstream.ErrNotFound):
		return http.StatusBadRequest, "ResourceNotFoundException", "Secrets Manager can't find the specified secret."
	case f.code == upstream.Code(upstream.ErrPendingDeletion):
		return http.StatusBadRequest, "InvalidRequestException", "You can't perform this operation on the secret because it was marked for deletion."
	case f.code == upstream.Code(upstream.ErrKeyNotFound):
		return http.StatusBadRequest, "DecryptionFailure", f.message
	case f.status == http.StatusForbidden:
		return http.StatusBadRequest, "AccessDeniedException", f.message
	case f.status == http.StatusTooManyRequests:
		return http.StatusBadRequest, "ThrottlingException", f.message
	case f.status == http.StatusBadRequest:
		return http.StatusBadRequest, "InvalidParameterException", f.message
	case f.status < http.StatusInternalServerError:
		return http.StatusBadRequest, "InvalidRequestException", f.message
	}
	return http.StatusInternalServerError, "InternalServiceError", f.message
}

// exceptionAWS writes an error as the AWS agent does, with a space between its members.
func exceptionAWS(kind, message string) []byte {
	text := `{"__type":` + string(bytes.TrimSpace(encode(kind)))
	if message != "" {
		text += `, "message":` + string(bytes.TrimSpace(encode(message)))
	}
	return []byte(text + "}")
}

// mistake is a request that is wrong in a way for which the AWS agent has words of its own.
type mistake struct {
	error
	aws string
}

func (m mistake) Unwrap() error { return m.error }
