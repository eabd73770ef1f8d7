package endpoint

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"secretagent/upstream"
)

// query is what path and parameters ask for. Its strings alias the buffers of the request,
// except those of a batch.
type query struct {
	ref     upstream.SecretRef
	batch   []upstream.SecretRef
	format  Format
	field   string // empty: the whole value
	refresh bool
	wait    time.Duration
	code    string // of a one-time link

	list     bool // the names below id are asked for, not a value
	numbered bool // the version id is a number as Vault counts: that id, or v and it

	given     param
	id, stage string
}

// param is a bit per parameter.
type param uint16

const (
	paramSecretID param = 1 << iota
	paramVersionID
	paramVersionStage
	paramRefreshNow
	paramFormat
	paramField
	paramWait
	paramCode
	paramVersion
	paramList
	paramName // of a parameter of Parameter Store, and what is asked of it
	paramLabel
	paramDecryption

	paramsOfRef   = paramSecretID | paramVersionID | paramVersionStage | paramName | paramLabel
	paramsOfValue = paramVersionID | paramVersionStage | paramRefreshNow | paramFormat | paramField | paramWait
)

// paramNames are the names of the bits, in their order.
var paramNames = [...]string{"secretId", "versionId", "versionStage", "refreshNow", "format", "field", "wait", "code", "version", "list", "name", "label", "withDecryption"}

// allowedParams names the parameters that a route takes.
func allowedParams(r *route) string {
	var names []string
	for i, name := range paramNames {
		if r.params&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	switch {
	case names == nil:
		return "none"
	case r.many:
		return "secretId, as often as needed"
	}
	return strings.Join(names, ", ")
}

// parse reads the name in a path and the query behind it, strictly: what is unknown, empty or
// repeated is an error that names it, unless the family is lenient or the route loose. Decoded
// text goes to c.scratch. It allocates nothing when all is well, but for a batch.
func (s *Server) parse(c *conn, f *family, r *route, name, raw []byte) (first error) {
	q := &c.query
	if r.forAll {
		return nil
	}
	for len(raw) > 0 {
		var pair []byte
		pair, raw, _ = bytes.Cut(raw, []byte{'&'})
		if err := s.parsePair(c, f, r, pair); err != nil && first == nil {
			first = err // but see what format= says about the shape of errors
		}
	}
	switch {
	case first != nil:
		return first
	case r.named:
		var ok bool
		if q.id, ok = c.unescape(name, false); !ok {
			return upstream.InvalidParameter("SecretName", "the path is not valid percent-encoding")
		}
		if q.list {
			return nil
		}
	case r.many && len(q.batch) == 0:
		return upstream.MissingParameter("secretId")
	case r.many || r.params&(paramSecretID|paramName) == 0:
		return nil
	}
	if q.wait > 0 && q.refresh {
		return upstream.InvalidParameter("wait", "it cannot be combined with refreshNow")
	}
	if q.field != "" && q.given&paramFormat == 0 {
		q.format = FormatRaw // a client that picks one field wants its text
	}
	switch {
	case r.params&paramName != 0:
		if err := q.setParameter(); err != nil {
			return err
		}
	case f == familyAWS || q.format == FormatAWS:
		q.id, q.stage = nameInARN(q.id), fromAWSStage(q.stage)
	}
	return q.parseRef(r)
}

// formatIn returns the format that a query names, for a refusal that comes before it is parsed.
func formatIn(raw []byte, otherwise Format) Format {
	for pair := range bytes.SplitSeq(raw, []byte{'&'}) {
		if name, ok := bytes.CutPrefix(pair, []byte("format=")); ok {
			if f, err := ParseFormat(view(name)); err == nil {
				return f
			}
		}
	}
	return otherwise
}

// parsePair reads one parameter.
func (s *Server) parsePair(c *conn, f *family, r *route, pair []byte) error {
	q := &c.query
	rawName, rawValue, _ := bytes.Cut(pair, []byte{'='})
	if len(pair) == 0 && f.lenient {
		return nil
	}
	name, ok := c.unescape(rawName, false)
	i := slices.Index(paramNames[:], name)
	taken := i >= 0 && r.params&(1<<i) != 0
	if !taken && r.loose {
		return nil
	}
	if !ok || name == "" {
		return upstream.InvalidParameter("query", "a parameter has no name, or one that is not valid percent-encoding")
	}
	if !taken {
		if len(name) > 32 {
			name = name[:32] + "…"
		}
		return mistake{upstream.InvalidParameter(name, "it is unknown here; allowed: "+allowedParams(r)), "unknown parameter: " + name}
	}
	kind := param(1) << i
	if q.given&kind != 0 && !r.many && !f.lenient {
		return upstream.InvalidParameter(name, "it is given more than once")
	}
	q.given |= kind
	value, ok := c.unescape(rawValue, kind == paramField)
	if !ok {
		return upstream.InvalidParameter(name, "it is not valid percent-encoding")
	}
	if value == "" && !(f.lenient && kind&paramsOfRef != 0) {
		return upstream.InvalidParameter(name, "it is empty; leave it out instead")
	}
	if r.many {
		return q.addToBatch(value, s.opts.MaxBatch)
	}
	return q.set(kind, value, s.opts.MaxWait)
}

// set takes the value of a parameter.
func (q *query) set(kind param, value string, maxWait time.Duration) (err error) {
	switch kind {
	case paramSecretID, paramName:
		q.id = value
	case paramVersionID:
		if q.numbered {
			return upstream.InvalidParameter("versionId", "it cannot be combined with version")
		}
		if q.ref.VersionID = upstream.VersionID(value); value != "" {
			return q.ref.VersionID.Validate()
		}
	case paramVersionStage, paramLabel:
		q.stage = value
	case paramRefreshNow:
		if q.refresh, err = parseBool(value); err != nil {
			return mistake{upstream.InvalidParameter("refreshNow", "it must be true or false"), "invalid refreshNow value"}
		}
	case paramDecryption:
		if yes, err := parseBool(value); err != nil || !yes {
			return upstream.InvalidParameter("withDecryption", "it must be true, or left out: values are not encrypted here")
		}
	case paramFormat:
		f, err := ParseFormat(value)
		if err != nil {
			return upstream.InvalidParameter("format", "it must be one of "+formatNames)
		}
		q.format = f
	case paramField:
		q.field = value
	case paramWait:
		if q.wait, err = time.ParseDuration(value); err != nil || q.wait <= 0 || q.wait > maxWait {
			return upstream.InvalidParameter("wait", fmt.Sprintf("it must be a duration of at most %v, such as 30s", maxWait))
		}
	case paramCode:
		q.code = value
	case paramVersion:
		err = q.setNumber(value)
	case paramList:
		yes, err := parseBool(value)
		if err != nil {
			return upstream.InvalidParameter("list", "it must be true or false")
		}
		q.list = q.list || yes // LIST stays one
	}
	return err
}

// setNumber takes a version as Vault and Parameter Store count them; 0 is the current one.
func (q *query) setNumber(value string) error {
	n, err := strconv.ParseUint(value, 10, 31)
	switch {
	case err != nil:
		return upstream.InvalidParameter("version", "it must be a whole number")
	case q.ref.VersionID != "" && !q.numbered:
		return upstream.InvalidParameter("version", "it cannot be combined with versionId")
	}
	q.numbered = n > 0
	q.ref.VersionID = upstream.VersionID(strings.TrimLeft(value, "0"))
	return nil
}

func (q *query) addToBatch(id string, most int) error {
	if len(q.batch) == most {
		return upstream.InvalidParameter("secretId", fmt.Sprintf("at most %d are allowed", most))
	}
	ref, err := upstream.ParseSecretRef(strings.Clone(id))
	q.batch = append(q.batch, ref.WithDefaults())
	return err
}

// parseBool returns what true, 1, false and 0 mean, in any case of letters.
func parseBool(value string) (bool, error) {
	switch {
	case value == "1", strings.EqualFold(value, "true"):
		return true, nil
	case value == "0", strings.EqualFold(value, "false"):
		return false, nil
	}
	return false, upstream.ErrInvalidParameter
}

// parseRef makes a reference of name or name:Label, and what was given apart.
func (q *query) parseRef(r *route) error {
	switch {
	case q.id != "":
	case r.named:
		return mistake{upstream.MissingParameter("secretId"), "missing secret ID"}
	case r.params&paramName != 0:
		return mistake{upstream.MissingParameter("name"), "missing parameter name"}
	default:
		return mistake{upstream.MissingParameter("secretId"), "missing parameter secretId"}
	}
	ref, err := upstream.ParseSecretRef(q.id)
	if err != nil {
		return err
	}
	if q.stage != "" {
		label := upstream.VersionStage(q.stage)
		if ref.VersionStage != "" && ref.VersionStage != label {
			return upstream.InvalidParameter("versionStage", "the name carries another label after ':'")
		}
		if err := label.Validate(); err != nil {
			return err
		}
		ref.VersionStage = label
	}
	ref.VersionID = q.ref.VersionID
	q.ref = ref.WithDefaults()
	return nil
}

// unescape decodes percent-encoding once; '+' is a space only when asked. The result aliases b
// or c.scratch. ok is false for a '%' that is not followed by two hex digits.
func (c *conn) unescape(b []byte, plus bool) (text string, ok bool) {
	if bytes.IndexByte(b, '%') < 0 && (!plus || bytes.IndexByte(b, '+') < 0) {
		return view(b), true
	}
	from := len(c.scratch)
	for i := 0; i < len(b); i++ {
		switch next := b[i]; {
		case next == '+' && plus:
			c.scratch = append(c.scratch, ' ')
		case next == '%':
			if i+2 >= len(b) {
				return "", false
			}
			var err error
			if c.scratch, err = hex.AppendDecode(c.scratch, b[i+1:i+3]); err != nil {
				return "", false
			}
			i += 2
		default:
			c.scratch = append(c.scratch, next)
		}
	}
	return view(c.scratch[from:]), true
}

// view returns b as a string without copying. The string is valid until b's owner reuses the
// buffer, which for requests is after the handler returned; [owned] copies what must live on.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
