package kmsserver

import (
	"cmp"
	"maps"
	"strings"

	"github.com/valyala/fasthttp"
)

const apiVersion = "2016-01-20"

// request is one request, decoded. Body and headers are memory of the connection, valid while
// the request is handled.
type request struct {
	method        string
	action        string
	params        params // of query and body
	query         params // of the query alone
	body          []byte
	authorization string // empty unless the request is signed in its headers
	headers       *fasthttp.RequestHeader
}

// header returns the value of a header, empty where there is none. A header that is given more
// than once is an error.
func (r *request) header(name string) (string, error) {
	switch values := r.headers.PeekAll(name); len(values) {
	case 0:
		return "", nil
	case 1:
		return strings.TrimSpace(string(values[0])), nil
	}
	return "", errIncompleteSignature("a header is given more than once.")
}

// parseRequest decodes a request. jsonAllowed says that a JSON body counts even when the
// request is not signed in its headers; the V1 signature would not cover it. The request that it
// returns with an error holds what could be read.
func parseRequest(ctx *fasthttp.RequestCtx, jsonAllowed bool) (*request, error) {
	req, queryErr := readQuery(ctx)
	if !ctx.IsGet() && !ctx.IsPost() {
		return req, errMethod
	}
	if path := string(ctx.URI().PathOriginal()); path != "/" && path != "" {
		return req, errUnknownAction
	}
	if encoding := string(req.headers.Peek("Content-Encoding")); encoding != "" && encoding != "identity" {
		return req, errParse("a compressed body is not supported")
	}
	req.body = ctx.PostBody()
	if auth := string(req.headers.Peek("Authorization")); signedV3(auth) {
		req.authorization = auth
	}
	if err := cmp.Or(queryErr, req.addBody(jsonAllowed || req.authorization != "")); err != nil {
		return req, err
	}
	return req, req.findAction()
}

// readQuery begins a request with what is before its body.
func readQuery(ctx *fasthttp.RequestCtx) (*request, error) {
	req := &request{method: string(ctx.Method()), query: params{}, headers: &ctx.Request.Header}
	err := req.query.addForm(ctx.URI().QueryString())
	req.params = maps.Clone(req.query)
	return req, err
}

func (r *request) addBody(jsonAllowed bool) error {
	if len(r.body) == 0 {
		return nil
	}
	contentType, err := r.header("Content-Type")
	if err != nil {
		return err
	}
	mediaType, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	switch strings.TrimSpace(mediaType) {
	case "application/x-www-form-urlencoded":
		return r.params.addForm(r.body)
	case "application/json":
		if !jsonAllowed {
			return errParse("a JSON body is not covered by this signature: send a form, or sign with " + algorithmV3)
		}
		return r.params.addJSON(r.body)
	default:
		return errParse("the content type of the body is neither application/x-www-form-urlencoded nor application/json")
	}
}

// findAction takes action and version from the place that the signature covers: the headers
// when it is in the headers, the parameters otherwise.
func (r *request) findAction() error {
	action, version := r.params["Action"], r.params["Version"]
	if r.authorization != "" {
		var err error
		if action, err = r.header("x-acs-action"); err != nil {
			return err
		}
		if version, err = r.header("x-acs-version"); err != nil {
			return err
		}
	}
	switch {
	case action == "":
		return errMissingCommon("Action")
	case version == "":
		return errMissingCommon("Version")
	case version != apiVersion:
		return errUnknownAction
	}
	if format := r.params["Format"]; format != "" && !strings.EqualFold(format, "JSON") && !strings.EqualFold(format, "XML") {
		return errFormat("Format", "it is neither JSON nor XML.")
	}
	r.action = action
	return nil
}

// wantsXML reports whether the answer, also that of a request which is refused, is to be XML.
// Format decides. Where it says neither, XML is for those who accept XML and nothing that JSON is.
func (r *request) wantsXML() bool {
	switch strings.ToUpper(r.params["Format"]) {
	case "XML":
		return true
	case "JSON":
		return false
	}
	wanted := false
	for _, line := range r.headers.PeekAll("Accept") {
		for accepted := range strings.SplitSeq(strings.ToLower(string(line)), ",") {
			mediaType, _, _ := strings.Cut(accepted, ";")
			switch strings.TrimSpace(mediaType) {
			case "application/xml", "text/xml":
				wanted = true
			case "application/json", "text/json", "application/*", "text/*", "*/*":
				return false
			}
		}
	}
	return wanted
}

func (r *request) credentials() (*credentials, error) {
	if r.authorization != "" {
		return r.credentialsV3()
	}
	return credentialsV1(r.method, r.params)
}
