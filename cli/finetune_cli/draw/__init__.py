"""What a person sees. Every function here is pure: frozen data and the time in, a picture out."""
