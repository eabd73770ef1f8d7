package endpoint

import (
	"bytes"
	"fmt"
	"time"
	"unsafe"

	"secretagent/upstream"
)

// query is what path and parameters ask for. Its strings alias the buffers of the request.
type query struct {
	ref     upstream.SecretRef
	format  Format
	field   string // empty: the whole value
	refresh bool
	wait    time.Duration
}

// param is a bit per parameter.
type param uint8

const (
	paramSecretID param = 1 << iota
	paramVersionID
	paramVersionStage
	paramRefreshNow
	paramFormat
	paramField
	paramWait
	paramCode
)

// paramsOf says which parameters a route takes, as bits and in words.
var paramsOf = [...]struct {
	set   param
	names string
}{
	routeName: {paramVersionID | paramVersionStage | paramRefreshNow | paramFormat | paramField | paramWait,
		"versionId, versionStage, refreshNow, format, field, wait"},
	routeGet: {paramSecretID | paramVersionID | paramVersionStage | paramRefreshNow | paramFormat | paramField | paramWait,
		"secretId, versionId, versionStage, refreshNow, format, field, wait"},
	routeBatch:    {paramSecretID, "secretId, as often as needed"},
	routeReport:   {paramSecretID | paramVersionStage, "secretId, versionStage"},
	routeVersions: {paramSecretID, "secretId"},
	routePageOpen: {paramCode, "code"},
	routeSignOut:  {}, // the remaining routes take none
}

func paramOf(name string) param {
	switch name {
	case "secretId":
		return paramSecretID
	case "versionId":
		return paramVersionID
	case "versionStage":
		return paramVersionStage
	case "refreshNow":
		return paramRefreshNow
	case "format":
		return paramFormat
	case "field":
		return paramField
	case "wait":
		return paramWait
	case "code":
		return paramCode
	}
	return 0
}

// params steps through a query, strictly: what is unknown, empty or repeated is an error that
// names it. Decoded text goes to c.scratch.
type params struct {
	c        *conn
	route    route
	rest     []byte
	seen     param
	repeated param // these may be repeated
}

// next returns the next parameter and its value; zero at the end.
func (p *params) next() (param, string, error) {
	if len(p.rest) == 0 {
		return 0, "", nil
	}
	var pair []byte
	pair, p.rest, _ = bytes.Cut(p.rest, []byte{'&'})
	rawName, rawValue, _ := bytes.Cut(pair, []byte{'='})
	name, ok := p.c.unescape(rawName, false)
	if !ok || len(name) == 0 {
		return 0, "", upstream.InvalidParameter("query", "a parameter has no name, or one that is not valid percent-encoding")
	}
	kind := paramOf(name)
	if kind == 0 || kind&paramsOf[p.route].set == 0 {
		return 0, "", upstream.InvalidParameter(shorten(name), "it is unknown here; allowed: "+p.allowed())
	}
	if p.seen&kind != 0 && kind&p.repeated == 0 {
		return 0, "", upstream.InvalidParameter(name, "it is given more than once")
	}
	p.seen |= kind
	value, ok := p.c.unescape(rawValue, kind == paramField)
	if !ok {
		return 0, "", upstream.InvalidParameter(name, "it is not valid percent-encoding")
	}
	if value == "" {
		return 0, "", upstream.InvalidParameter(name, "it is empty; leave it out instead")
	}
	return kind, value, nil
}

func (p *params) allowed() string {
	if names := paramsOf[p.route].names; names != "" {
		return names
	}
	return "none"
}

// shorten keeps an unknown name readable in a message.
func shorten(name string) string {
	if len(name) > 32 {
		return name[:32] + "…"
	}
	return name
}

// parseGet reads path name and query into q, without allocating when all is well.
func (s *Server) parseGet(c *conn, q *query, r route, pathName, raw []byte) error {
	p := params{c: c, route: r, rest: raw}
	var id, stage string
	var versionID upstream.VersionID
	formatGiven := false
	if r == routeName {
		var ok bool
		if id, ok = c.unescape(pathName, false); !ok {
			return upstream.InvalidParameter("SecretName", "the path is not valid percent-encoding")
		}
	}
	for {
		kind, value, err := p.next()
		if err != nil {
			return err
		}
		if kind == 0 {
			break
		}
		switch kind {
		case paramSecretID:
			id = value
		case paramVersionID:
			versionID = upstream.VersionID(value)
		case paramVersionStage:
			stage = value
		case paramRefreshNow:
			if q.refresh, err = parseBool("refreshNow", value); err != nil {
				return err
			}
		case paramFormat:
			f, ok := formatOf(value)
			if !ok {
				return upstream.InvalidParameter("format", "it must be one of "+formatNames)
			}
			q.format, formatGiven = f, true
		case paramField:
			q.field = value
		case paramWait:
			d, err := time.ParseDuration(value)
			if err != nil || d <= 0 || d > s.opts.MaxWait {
				return upstream.InvalidParameter("wait", fmt.Sprintf("it must be a duration of at most %v, such as 30s", s.opts.MaxWait))
			}
			q.wait = d
		}
	}
	if q.wait > 0 && q.refresh {
		return upstream.InvalidParameter("wait", "it cannot be combined with refreshNow")
	}
	if !formatGiven {
		q.format = s.opts.Format
		if q.field != "" {
			q.format = FormatRaw // whoever picks one field wants its text
		}
	}
	if q.format == FormatAWS {
		stage = fromAWSStage(stage)
	}
	ref, err := parseRef(id, stage)
	if err != nil {
		return err
	}
	if versionID != "" {
		if err := versionID.Validate(); err != nil {
			return err
		}
		ref.VersionID = versionID
	}
	q.ref = ref
	return nil
}

// parseRef reads name or name:Label, and a label that was given apart.
func parseRef(id, stage string) (upstream.SecretRef, error) {
	if id == "" {
		return upstream.SecretRef{}, upstream.MissingParameter("secretId")
	}
	ref, err := upstream.ParseSecretRef(id)
	if err != nil {
		return upstream.SecretRef{}, err
	}
	if stage != "" {
		label := upstream.VersionStage(stage)
		if ref.VersionStage != "" && ref.VersionStage != label {
			return upstream.SecretRef{}, upstream.InvalidParameter("versionStage", "the name carries another label after ':'")
		}
		if err := label.Validate(); err != nil {
			return upstream.SecretRef{}, err
		}
		ref.VersionStage = label
	}
	return ref, nil
}

func parseBool(name, value string) (bool, error) {
	switch value {
	case "true", "True", "1":
		return true, nil
	case "false", "False", "0":
		return false, nil
	}
	return false, upstream.InvalidParameter(name, "it must be true or false")
}

// unescape decodes percent-encoding once; '+' is a space only when asked. The result aliases b
// or c.scratch. ok is false for a '%' that is not followed by two hex digits.
func (c *conn) unescape(b []byte, plus bool) (text string, ok bool) {
	if bytes.IndexByte(b, '%') < 0 && (!plus || bytes.IndexByte(b, '+') < 0) {
		return view(b), true
	}
	from := len(c.scratch)
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '+' && plus:
			c.scratch = append(c.scratch, ' ')
		case b[i] != '%':
			c.scratch = append(c.scratch, b[i])
		default:
			if i+2 >= len(b) {
				return "", false
			}
			hi, lo := unhex(b[i+1]), unhex(b[i+2])
			if hi > 15 || lo > 15 {
				return "", false
			}
			c.scratch = append(c.scratch, hi<<4|lo)
			i += 2
		}
	}
	return view(c.scratch[from:]), true
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// view returns b as a string without copying. The string is valid until b's owner reuses the
// buffer, which for requests is after the handler returned; [owned] copies what must live on.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
