"""The words that tasks are made of, by kind.

Kinds do not overlap, so a key or value of a fact appears nowhere in the small-English sentences.
Common words were chosen because most tokenizers hold them as one token.
"""

KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(text.split())
    for kind, text in {
        "names": """Mary John Tom Anna James Sarah Paul Emma Mark Lucy David Laura Peter Alice Simon
            Kate Daniel Helen George Julia Adam Rachel Henry Claire Robert Jane Michael Susan Kevin
            Linda Brian Karen Jack Emily Scott Amy Frank Ruth Carl Grace Martin Nancy Eric Diana
            Victor Rose Oscar Sophie Maria Bob Anne Sam Joe Lisa Nick Kim Ben Max Leo Ian""",
        "places": """store garden school park station kitchen office market library church hospital
            beach farm river museum hotel restaurant theater village castle forest bridge harbor
            airport prison palace factory stadium house valley""",
        "things": """book ring letter drink bag ball cup lamp key map coin hat box pen watch phone
            knife chair basket camera guitar bottle ticket mirror cake flower clock bell rope
            blanket gift picture table desk shirt coat candle toy sweater wallet plate spoon""",
        "adjectives": """red small big old new cold warm dark bright quiet heavy strange pretty
            empty broken clean""",
        "events": """war trip voyage study project siege plague reign strike tour contract festival
            expedition dynasty drought campaign""",
        "keys": """apple banana carrot lemon cherry grape onion potato tomato pepper salt sugar
            honey butter cheese bread rice corn bean nut tiger lion bear wolf fox rabbit horse cow
            pig sheep goat duck goose eagle hawk owl snake frog turtle fish shark whale monkey
            mouse rat cat dog bird bee ant spider worm iron steel gold silver copper zinc lead tin
            glass paper wood stone sand clay brick cotton wool silk leather rubber plastic""",
        "values": """north south east west summer winter spring autumn morning evening night noon
            doctor teacher lawyer farmer soldier sailor baker painter writer singer actor dancer
            king queen prince knight monk judge guard pilot driver miner hunter engine wheel motor
            piano violin drum flute horn trumpet anchor arrow shield sword spear hammer needle
            thread button pocket collar sleeve square circle triangle cube sphere cone rain snow
            wind storm cloud thunder fog ice fire smoke dust""",
        "numbers": " ".join(f"{number:02d}" for number in range(100)),
        "brackets": "( ) [ ] { }",
        "grammar": """. , ? ! : ; a the The to and in In of on at is was were has with from for
            When Then After While it It there went gave handed passed sold offered walked ran drove
            came got took found saw near wanted buy carried decided day lasted year note ask close
            open worked so by I he she they his her had""",
    }.items()
}
