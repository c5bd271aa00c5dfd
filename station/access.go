package station

import (
	"context"
	"net/http"
	"strings"

	"secretfree/station/auth"
)

type roleKey struct{}

// roleOf is who sends a request that came through guard.
func roleOf(r *http.Request) auth.Role {
	role, _ := r.Context().Value(roleKey{}).(auth.Role)
	return role
}

// accessControl is what every request passes: nobody calls the station by a
// name that is not its own, only GET and HEAD, and POST where posts tells that
// there is something to be changed, only from the station's own pages. Then it
// finds out who it is.
func (s *Station) accessControl(posts func(*http.Request) bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin") // with no-referrer a form of our own has no origin
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method == http.MethodPost && posts(r):
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		if !s.ownHost(r.Host) {
			http.Error(w, "open this page by its address or as localhost, or have its name added to the hosts of the station", http.StatusMisdirectedRequest)
			return
		}
		if err := s.auth.CheckOrigin(r); err != nil {
			http.Error(w, "only pages of this station may change something", http.StatusForbidden)
			return
		}
		role, waits := s.auth.Role(r)
		if waits {
			tooMany(w)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), roleKey{}, role)))
	})
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "60")
	http.Error(w, "too many wrong tokens; wait for a minute", http.StatusTooManyRequests)
}

// admit lets through who has a role.
func (s *Station) admit(needs auth.Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch role := roleOf(r); {
		case role >= needs:
			next.ServeHTTP(w, r)
		case role != auth.Nobody || s.auth.Tokens == nil:
			http.Error(w, "you may look at this station and change nothing: that takes the technician's token", http.StatusForbidden)
		case r.Method == http.MethodGet && r.Header.Get("Authorization") == "" && strings.Contains(r.Header.Get("Accept"), "text/html"):
			toLogin(w, r)
		default:
			if r.Header.Get("Authorization") != "" {
				s.log.Warn().Stringer("client", auth.ClientOf(r)).Msg("a wrong token was shown")
			}
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "this station asks for a token: Authorization: Bearer …, or log in at /login", http.StatusUnauthorized)
		}
	})
}

// Guard lets GET and HEAD of those who may look through to next, and nobody who
// calls the station by a name that is not its own.
func (s *Station) Guard(next http.Handler) http.Handler {
	return s.accessControl(func(*http.Request) bool { return false }, s.admit(auth.Viewer, next))
}

// route is something that the station answers.
type route struct {
	pattern string    // as http.ServeMux has it, with the method; what GET serves changes nothing
	needs   auth.Role // Technician for every POST but those of logging in and out
	serve   http.HandlerFunc
}

// serve puts the routes behind the guard.
func (s *Station) serveRoutes(routes []route) http.Handler {
	mux := http.NewServeMux()
	for _, r := range routes {
		mux.Handle(r.pattern, s.admit(r.needs, r.serve))
	}
	mux.Handle("/", s.admit(auth.Viewer, http.HandlerFunc(http.NotFound)))
	return s.accessControl(func(r *http.Request) bool {
		_, pattern := mux.Handler(r)
		return strings.HasPrefix(pattern, http.MethodPost+" ")
	}, mux)
}
