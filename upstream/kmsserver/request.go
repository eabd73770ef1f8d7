package kmsserver

import (
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
// request is not signed in its headers; the V1 signature would not cover it.
func parseRequest(ctx *fasthttp.RequestCtx, jsonAllowed bool) (*request, error) {
	if !ctx.IsGet() && !ctx.IsPost() {
		return nil, errMethod
	}
	if path := string(ctx.URI().PathOriginal()); path != "/" && path != "" {
		return nil, errUnknownAction
	}
	h := &ctx.Request.Header
	if encoding := string(h.Peek("Content-Encoding")); encoding != "" && encoding != "identity" {
		return nil, errParse("a compressed body is not supported")
	}
	req := &request{method: string(ctx.Method()), params: params{}, query: params{}, body: ctx.PostBody(), headers: h}
	if err := req.query.addForm(ctx.URI().QueryString()); err != nil {
		return nil, err
	}
	if auth := string(h.Peek("Authorization")); signedV3(auth) {
		req.authorization = auth
	}
	maps.Copy(req.params, req.query)
	if err := req.addBody(jsonAllowed || req.authorization != ""); err != nil {
		return nil, err
	}
	return req, req.findAction()
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
	if format := r.params["Format"]; format != "" && !strings.EqualFold(format, "JSON") {
		return errFormat("Format", "only JSON is served.")
	}
	r.action = action
	return nil
}

func (r *request) credentials() (*credentials, error) {
	if r.authorization != "" {
		return r.credentialsV3()
	}
	return credentialsV1(r.method, r.params)
}
