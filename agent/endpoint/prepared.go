package endpoint

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"strings"
	"sync/atomic"

	"secretagent/upstream"
)

// maxFields bounds how many fields of one value are kept encoded.
const maxFields = 32

// prepared is what answers with one value have in common. It lives in the value's memo. The
// form that was asked for first sits beside the tag, where the processor finds it without
// another trip to memory; the others are added as they are needed.
type prepared struct {
	etag   [24]byte // quotes included
	first  body
	format Format // of first
	bodies [numFormats]atomic.Pointer[body]
	fields atomic.Pointer[[]fieldBody] // replaced, never modified
}

type fieldBody struct {
	format Format
	field  string
	body   *body
}

// preparedOf returns what is prepared for a's value. Whoever needs it first prepares it, in
// format f.
func (s *Server) preparedOf(a *upstream.Answer, f Format) *prepared {
	if a.Memo != nil {
		if p, ok := a.Memo.Load().(*prepared); ok {
			return p
		}
	}
	p := &prepared{etag: s.etagOf(a.Value), first: *shape(a.Value, f), format: f}
	if a.Memo != nil && !a.Memo.CompareAndSwap(nil, p) {
		if other, ok := a.Memo.Load().(*prepared); ok {
			return other
		}
	}
	return p
}

// wanted returns the part of v, in the format, that q asks for; errNoField when there is none.
func (p *prepared) wanted(v *upstream.SecretValue, q *query) (*body, error) {
	if q.field != "" {
		return p.fieldOf(v, q.format, q.field)
	}
	return p.bodyOf(v, q.format), nil
}

func (p *prepared) bodyOf(v *upstream.SecretValue, f Format) *body {
	if f == p.format {
		return &p.first
	}
	if b := p.bodies[f].Load(); b != nil {
		return b
	}
	b := shape(v, f)
	p.bodies[f].Store(b)
	return b
}

func (p *prepared) fieldOf(v *upstream.SecretValue, f Format, field string) (*body, error) {
	held := p.fields.Load()
	if held != nil {
		for i := range *held {
			if e := &(*held)[i]; e.format == f && e.field == field {
				return e.body, nil
			}
		}
	}
	b, err := shapeField(v, f, field)
	if err != nil {
		return nil, err
	}
	var more []fieldBody
	if held != nil {
		more = append(more, *held...)
	}
	if len(more) < maxFields {
		more = append(more, fieldBody{f, strings.Clone(field), b})
		p.fields.CompareAndSwap(held, &more) // whoever loses will try again with its next request
	}
	return b, nil
}

// etagOf returns the entity tag of a value, quotes included: a hash under a key that only this
// process knows, since a plain one would let its reader test guesses of the value.
func (s *Server) etagOf(v *upstream.SecretValue) (tag [24]byte) {
	mac := hmac.New(sha256.New, s.etagKey[:])
	hashField(mac, string(v.SecretName))
	hashField(mac, string(v.VersionID))
	hashField(mac, v.SecretDataType)
	hashField(mac, string(v.SecretData.Reveal()))
	for _, stage := range v.VersionStages {
		hashField(mac, string(stage))
	}
	tag[0], tag[23] = '"', '"'
	base64.RawURLEncoding.Encode(tag[1:23], mac.Sum(nil)[:16])
	return tag
}

// hashField writes s with its length, so that no two lists of fields hash alike.
func hashField(h hash.Hash, s string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(s)))
	h.Write(n[:])
	h.Write([]byte(s))
}

// etagMatches reports whether an If-None-Match header names etag.
func etagMatches(header, etag []byte) bool {
	list := view(header)
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		item = strings.TrimPrefix(strings.Trim(item, " \t"), "W/")
		if item == "*" || item == view(etag) {
			return true
		}
	}
	return false
}
