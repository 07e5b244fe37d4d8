"""The words that names, things and sentences are made of."""

from __future__ import annotations


def words(text: str) -> list[str]:
    """The words of a list kept as running text."""
    return text.split()


def phrases(text: str) -> list[str]:
    """The phrases of a list kept as running text with bars between them."""
    return [phrase.strip() for phrase in " ".join(text.split()).split("|")]


ONSETS = words("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w z bl cr gl sk sl sw y")
VOWELS = words("a e i o u a e i o u a e i o ai ea ee ie ou au ia y")
CODAS = [""] * 8 + words("l m n r s t ck d g k ld lt nd ng nt rd rk rn rt sk ss st x z ff ll nn th sch p b")
SURNAME_ENDS = [""] * 3 + words("""
er man sen son ski ova ez ini ou ley by wick stein ak ura oto ian idze ko ic eau ard ell ins holm berg a o
""")
FIRST_ENDS = [""] * 2 + words("a e o in ine ette us ia iel ard ne ika y an eth is")
TOWN_ENDS = words("""
ton ford ham bury mouth field haven moor dale stead bridge ville burg wald see by port minster wich combe
ness brunn au hill vik
""")
STREETS = words("Street Road Lane Avenue Way Square Close Row Hill Gate Quay Walk")
FIRST = words("""
Ada Amir Anna Aoife Arjun Bea Bruno Carla Chen Clara Daniel Davide Dina Edith Elias Emma Esther Farid Felix
Fiona Franz Gita George Hanna Hugo Ida Imran Ines Ivan Jack Jana Jonas Julia Kai Karim Klara Laila Lars Leo
Lucy Maria Mark Martin Mei Mina Mona Nadia Nico Nina Noah Olga Omar Otto Paul Petra Priya Rosa Ruth Samir
Sara Simon Sofia Tara Thomas Tim Tom Uma Vera Victor Wei Yusuf Zara Zoe David Peter James Mary Susan Helen
Alice Robert Karen Eva
""")
LAST = words("""
Adams Ali Bauer Becker Bell Brown Carter Clark Cohen Costa Cruz Diaz Evans Fischer Fox Garcia Gray Green
Haas Hall Hill Hughes Ito Jones Kaya Keller Khan Kim King Klein Kumar Lang Lee Lopez Marsh Meyer Mills Moore
Nagy Novak Okafor Park Patel Perez Price Reed Rossi Roth Sato Shah Silva Singh Smith Stone Tanaka Taylor
Turner Wagner Walsh Ward Weber White Wolf Wong Wood Young
""")
WORDS = words("""
amber anchor apple arrow autumn basil beacon birch blue bramble bridge bronze candle cedar cherry cliff
clover cloud copper coral crystal daisy dawn delta ember falcon fern field flint forest fox garnet ginger
glade golden granite harbour hazel heron holly honey iris ivory ivy jasper juniper kite lake lantern lark
lemon lilac linden lotus maple marble meadow mint mist moon moss nettle oak ocean olive onyx opal orchid
otter owl pearl pebble pepper pine plum poppy quartz quill raven reed river robin rose rowan ruby saffron
sage silver sparrow spruce star stone storm summer swan thistle tiger timber topaz tulip valley velvet
violet walnut water willow winter wren
""")
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = words("January February March April May June July August September October November December")
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"]
COLOURS = words("""
red blue green yellow white black grey brown orange purple silver wooden tall small large old new metal
""")
PLACE_HEADS = words("""
reading children's music north south upper lower old new glass river garden seminar front back main side
little great quiet local town market bridge mill station harbour family youth staff visitor training study
computer print sewing dance film play picnic rose map newspaper training east west central winter summer
stone
""")
PLACE_NOUNS = words("""
room hall desk studio workshop wing café kitchen archive gallery office counter pool library shop yard
laboratory garden terrace cellar lounge theatre court field chapel tower foyer annex playground bakery
cloakroom entrance branch corner stage gym
""")
EVENT_HEADS = words("""
choir chess knitting first-aid seed repair story language drawing pottery robotics Spanish Welsh Tamil
French Polish poetry photography cooking baking yoga swimming computer history science film jazz board-game
homework debate gardening cycling sewing woodwork painting parents' toddler walking reading writing guitar
violin drama dance astronomy bird coding magic tea quilting singing recorder judo first-steps
""")
EVENT_NOUNS = words("""
club course evening class workshop circle group tour meeting afternoon morning session camp lesson seminar
hour rehearsal festival fair exam
""")
SERVICE_HEADS = words("""
annual monthly guided family replacement student late colour school weekend group day evening summer winter
lost express parking deposit copy guest youth senior holiday trial visitor laminated printed second lunch
locker
""")
SERVICE_NOUNS = words("""
pass card ticket tour key permit certificate copy membership badge tag form visit lesson scan poster licence
locker bag seat appointment consultation report check vaccination transcript towel meal place print booking
""")
THING_HEADS = words("""
spare old clean used signed blank large small folding wireless digital wooden children's foreign local
picture sharp broken
""")
THING_NOUNS = words("""
books DVDs magazines keys maps tools projectors chairs tables games laptops cables forms bandages gloves
aprons brushes paints lamps instruments costumes helmets balls ropes towels blankets cups plates batteries
headphones cameras tents bicycles ladders folders stamps files newspapers comics scissors umbrellas toys
tablets microscopes
""")
ROLE_HEADS = words("""
head deputy assistant events youth music school finance technical reception garden collections volunteer
duty night outreach communications front-desk building safety members' admissions records exhibitions
kitchen children's data archive sports art laboratory parents'
""")
ROLE_NOUNS = words("""
librarian manager coordinator nurse caretaker treasurer secretary officer assistant teacher director clerk
curator technician trainer adviser editor porter receptionist organiser representative chair gardener cook
""")
DEPARTMENT_NOUNS = ["office", "desk", "team", "department", "service", "helpline", "group", "unit"]
THINGS = phrases("""
a photo card | a towel | indoor shoes | a signed form | proof of address | a passport | two photographs | an
apron | warm clothes | a pencil | a packed lunch | a water bottle | your own cup | a letter from the school
| a blanket | sun cream | a swimming cap | old newspapers | a clean jar | a bicycle helmet | the membership
card | a USB stick | the receipt | a laptop | gloves | a torch | an identity card | your insurance card | a
note from a doctor | a sleeping bag | closed shoes | exact change | a notebook | the blue form | a recent
bill | your own tools | a musical instrument | a list of medicines | the vaccination booklet
""")
APPLICATION_HEADS = phrases("""
summer camp | autumn term | spring term | new members' | small grants | young artists' | choir | photo
competition | essay prize | travel | staff parking | housing | book | exchange | volunteer | evening school
| science fair | stall holders' | garden plot | internship | music exam | loan | research | winter market
""")
APPLICATION_NOUNS = ["application", "registration", "sign-up", "form", "nomination", "request", "list"]
FILLER = phrases("""
Please ask at the desk if anything is unclear. | We look forward to your visit. | Dogs stay outside, except
guide dogs. | This page is reviewed every year. | Be kind to one another. | Changes are posted on the notice
board. | Food and drink are welcome in the yard only. | Please keep the aisles clear. | Thank you for your
patience. | Staff are happy to help. | Everyone is welcome. | The lift is on the left of the entrance. | Ask
before you take photographs. | The list below is up to date. | Please read this before you call. | Phones
are to be kept on silent. | We are a small team, and every hand counts. | Children under seven come with an
adult. | On public holidays different rules apply. | New colleagues should read this page first. | Keep this
sheet near the telephone. | Lost property is kept for a while and then given away. | Nothing here is secret,
but some of it is easily forgotten. | If in doubt, ask a colleague. | The rules were agreed by the whole
staff. | Wheelchair users reach every floor. | Smoking is not allowed anywhere in the building. | The
following holds from now on. | Please hand everything in on time. | We keep a waiting list. | Exceptions are
possible, but must be asked for.
""")
SIDES = words("north south east west")
PARTS = words("wing entrance stairs yard")
NEAR = phrases("behind | next to | under | by | opposite")
PEOPLE = words("people people visitors guests persons children members")
INSTITUTIONS = phrases("""
Library | Town Library | Museum | Clinic | Health Centre | Music School | Primary School | Swimming Pool |
Town Hall | Archive | Community Kitchen | Sports Club | Art School | Animal Shelter | Kindergarten | Theatre
| Botanical Garden | Repair Workshop | Youth Centre | College | Observatory | Language School | Village Hall
| Boat House | Tool Library | Parish Office | Adult School | Science Centre
""")
GROUPS = words("Adults Children Students Members Families Guests Pensioners Groups Staff")
